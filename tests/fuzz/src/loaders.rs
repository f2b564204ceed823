//! A kernel must load or be refused, whatever the image holds, without a write
//! outside the guest's RAM, and without a write at all where it is refused.

use core::cell::Cell;
use loader::{LoadError, LoadSettings, Module, load};
use memory::{GuestMemory, MemoryError};
use x86defs::{GuestPhysAddr, Width};

/// The guest's memory in bytes.
const MEMORY: u64 = 64 << 20;

/// RAM that only checks addresses.
#[derive(Default)]
struct Checked {
    writes: Cell<u64>,
}

impl GuestMemory for Checked {
    fn read(&self, gpa: GuestPhysAddr, _: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError::NotRam(gpa))
    }

    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        let end = gpa.checked_add(data.len() as u64).expect("no address overflows");
        let usable = |entry: &loader::e820::E820Entry| {
            let entry_end = entry.base.wrapping_add(entry.size);
            entry.kind == loader::e820::E820Kind::Ram && entry.base <= gpa && end <= entry_end
        };
        assert!(
            data.is_empty() || loader::e820::e820(MEMORY).iter().any(usable),
            "{} bytes at {gpa} are outside usable RAM",
            data.len()
        );
        self.writes.set(self.writes.get() + 1);
        Ok(())
    }

    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        _: Width,
        _: u64,
        _: u64,
    ) -> Result<u64, MemoryError> {
        Err(MemoryError::NotRam(gpa))
    }
}

/// One case: the kernel, once with an initial ramdisk and once with a module.
pub fn run(image: &[u8]) {
    let module = Module { name: "a module", data: image, cmdline: "module" };
    for (initrd, modules) in [(Some(module), [].as_slice()), (None, [module].as_slice())] {
        let settings = LoadSettings {
            memory: MEMORY,
            kernel: "kernel",
            cmdline: "console=ttyS0",
            initrd,
            modules,
            rsdp: GuestPhysAddr::new(config::layout::TABLES_START),
        };
        let memory = Checked::default();
        match load(image, &memory, &settings) {
            Ok(state) => assert_ne!(state.rip, 0),
            Err(LoadError::Memory(error)) => panic!("{error}"),
            Err(_) => assert_eq!(memory.writes.get(), 0),
        }
    }
}
