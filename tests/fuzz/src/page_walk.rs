//! The page walk must not panic or hang, whatever a guest's tables and
//! registers hold, and must keep the rules that hold for each answer.

use crate::input::Input;
use memory::walk::{Access, GuestPageTables, WalkConfig, WalkError, WalkFeatures, walk};
use x86defs::pte::{PageFaultCode, Pte};
use x86defs::{Cr0, Cr4, Efer, GuestPhysAddr, GuestVirtAddr, Low, Rflags, Width};

/// Tables that repeat 64 words for ever; every so often the guest changes one.
struct Words {
    words: [u64; 64],
    reads: u32,
    restless: u32,
}

impl GuestPageTables for Words {
    type Error = ();

    fn read_entry(&mut self, gpa: GuestPhysAddr, width: Width) -> Result<u64, ()> {
        self.reads += 1;
        assert!(gpa.is_aligned(width.bytes() as u64));
        let word = self.words[(gpa.as_u64() >> 3) as usize % 64];
        if word == u64::MAX {
            return Err(());
        }
        Ok(width.truncate(if gpa.as_u64() & 4 != 0 { word >> 32 } else { word }))
    }

    fn compare_exchange(
        &mut self,
        gpa: GuestPhysAddr,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, ()> {
        let added = new & !current & !(Pte::A | Pte::D).bits();
        assert_eq!(added, 0, "only accessed and dirty are the CPU's to set");
        if self.restless > 0 {
            self.restless -= 1;
            let word = &mut self.words[(gpa.as_u64() >> 3) as usize % 64];
            *word = word.rotate_left(1);
        }
        self.read_entry(gpa, width)
    }
}

/// One case.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let access = match input.byte() % 5 {
        0 => Access::Read,
        1 => Access::Write,
        2 => Access::Fetch,
        3 => Access::SystemRead,
        _ => Access::SystemWrite,
    };
    let config = WalkConfig {
        cr0: Cr0::from_bits_retain(input.u64()),
        cr3: input.u64(),
        cr4: Cr4::from_bits_retain(input.u64()),
        efer: Efer::from_bits_retain(input.u64()),
        rflags: Rflags::from_bits_retain(input.u64()),
        cpl: input.byte() & 3,
        pkru: input.u64().low32(),
        physical_bits: input.byte(),
        features: WalkFeatures::from_bits_truncate(input.byte()),
    };
    let gva = input.u64();
    let restless = u32::from(input.byte());
    let mut tables = Words { words: [0; 64], reads: 0, restless };
    for word in &mut tables.words {
        *word = input.u64() | 1;
    }
    let result = walk(&config, &mut tables, GuestVirtAddr::new(gva), access);
    assert!(tables.reads < 16 * 5 * 18, "not bounded");
    match result {
        Ok(found) => {
            assert_eq!((found.gpa.as_u64() ^ gva) & (found.page_size - 1), 0);
            let bits = u32::from(config.physical_bits.clamp(32, 52)).max(40);
            assert!(found.gpa.as_u64() >> bits == 0);
        }
        Err(WalkError::PageFault(code)) => {
            assert!(!code.contains(PageFaultCode::RSVD) || code.contains(PageFaultCode::P));
        }
        Err(_) => {}
    }
}
