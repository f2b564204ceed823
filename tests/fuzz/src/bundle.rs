//! A bundle must be refused or be whole, whatever the ramdisk holds.

use config::bundle::Bundle;

/// One case: the ramdisk.
pub fn run(data: &[u8]) {
    let Ok(bundle) = Bundle::open(data) else { return };
    let manifest = bundle.manifest();
    assert_eq!(manifest.check(), Ok(()));
    for entry in &manifest.files {
        let file = bundle.file(&entry.name).expect("every listed file is there");
        assert_eq!(file.len() as u64, entry.size);
    }
    for guest in &manifest.guests {
        assert!(bundle.file(&guest.kernel).is_some());
    }
}
