//! A vCPU with 64 KiB of flat memory to run the emulator on.

use x86defs::control::CpuMode;
use x86defs::{
    Cr0, Cr4, DescriptorTable, Gpr, Rflags, Segment, SegmentRegister, VectorRegister, Width, Xcr0,
};
use x86emu::{AccessKind, Cpu, DescriptorRegister, Fault, GuestException, ScanOp};

/// Bytes of memory, from linear address 0.
pub const MEMORY: usize = 0x1_0000;
/// This page can be read only.
pub const READ_ONLY: u64 = 0xe000;
/// This page is absent.
pub const ABSENT: u64 = 0xf000;
/// Code stands here unless a test moves it.
pub const CODE: u64 = 0x1000;

/// The vCPU. Addresses outside the memory fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// General registers by number.
    pub gprs: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: Rflags,
    /// Segment registers by number.
    pub segments: [Segment; 8],
    /// GDTR and IDTR.
    pub tables: [DescriptorTable; 2],
    /// CR0.
    pub cr0: Cr0,
    /// CR4.
    pub cr4: Cr4,
    /// XCR0.
    pub xcr0: Xcr0,
    /// YMM registers by number.
    pub ymm: [[u8; 32]; 16],
    /// MMX registers by number.
    pub mmx: [[u8; 8]; 8],
    /// MXCSR.
    pub mxcsr: [u8; 4],
    /// An exception of the x87 waits.
    pub x87_waits: bool,
    /// The privilege level.
    pub cpl: u8,
    /// The mode.
    pub mode: CpuMode,
    /// Alignment checks are on.
    pub alignment_check: bool,
    /// The memory.
    pub memory: Vec<u8>,
    /// Reads, writes and exchanges of data so far.
    pub accesses: usize,
    /// So many exchanges find that another vCPU was there first.
    pub contention: usize,
}

impl Machine {
    /// A vCPU of ring 0 with flat segments (in real mode, segments at zero) and
    /// `code` at [`CODE`].
    pub fn new(mode: CpuMode, code: &[u8]) -> Self {
        let mut segments = [Segment::data32(0x10); 8];
        segments[SegmentRegister::Cs as usize] = match mode {
            CpuMode::Long64 => Segment::code64(8),
            _ => Segment::code32(8),
        };
        if mode.is_real_like() {
            segments = [Segment::real_mode(0, 3); 8];
        }
        let mut memory = vec![0; MEMORY];
        memory[CODE as usize..][..code.len()].copy_from_slice(code);
        Self {
            gprs: [0; 16],
            rip: CODE,
            rflags: Rflags::RESERVED1,
            segments,
            tables: [DescriptorTable::default(); 2],
            cr0: Cr0::PE,
            cr4: Cr4::OSFXSR | Cr4::OSXSAVE,
            xcr0: Xcr0::X87 | Xcr0::SSE | Xcr0::AVX,
            ymm: [[0; 32]; 16],
            mmx: [[0; 8]; 8],
            mxcsr: [0x80, 0x1f, 0, 0],
            x87_waits: false,
            cpl: 0,
            mode,
            alignment_check: false,
            memory,
            accesses: 0,
            contention: 0,
        }
    }

    /// Place in memory of `len` bytes at `linear`, for a write or a read.
    fn check(&self, linear: u64, len: usize, write: bool) -> Result<usize, GuestException> {
        for i in 0..len as u64 {
            let at = linear.wrapping_add(i);
            let page = at & !0xfff;
            let error = u32::from(write) << 1;
            if page >= MEMORY as u64 || page == ABSENT {
                return Err(GuestException::page_fault(at, error));
            }
            if page == READ_ONLY && write {
                return Err(GuestException::page_fault(at, error | 1));
            }
        }
        Ok(linear as usize)
    }
}

impl Cpu for Machine {
    type Error = ();

    fn gpr(&self, gpr: Gpr) -> u64 {
        self.gprs[gpr as usize]
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.gprs[gpr as usize] = value;
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }

    fn rflags(&self) -> Rflags {
        self.rflags
    }

    fn set_rflags(&mut self, rflags: Rflags) {
        self.rflags = rflags;
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments[register as usize]
    }

    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.segments[register as usize] = segment;
    }

    fn descriptor_table(&self, register: DescriptorRegister) -> DescriptorTable {
        self.tables[register as usize]
    }

    fn set_descriptor_table(&mut self, register: DescriptorRegister, table: DescriptorTable) {
        self.tables[register as usize] = table;
    }

    fn cpl(&self) -> u8 {
        self.cpl
    }

    fn cr0(&self) -> Cr0 {
        self.cr0
    }

    fn cr4(&self) -> Cr4 {
        self.cr4
    }

    fn xcr0(&self) -> Xcr0 {
        self.xcr0
    }

    fn vector(&mut self, register: VectorRegister) -> Option<[u8; 32]> {
        let mut value = [0; 32];
        match register {
            VectorRegister::Mmx(_) if self.x87_waits => return None,
            VectorRegister::Mmx(n) => value[..8].copy_from_slice(&self.mmx[usize::from(n)]),
            VectorRegister::Xmm(n) => value[..16].copy_from_slice(&self.ymm[usize::from(n)][..16]),
            VectorRegister::Ymm(n) => value = self.ymm[usize::from(n)],
            VectorRegister::Mxcsr => value[..4].copy_from_slice(&self.mxcsr),
        }
        Some(value)
    }

    fn set_vector(&mut self, register: VectorRegister, value: [u8; 32]) -> Option<()> {
        match register {
            VectorRegister::Mmx(_) if self.x87_waits => return None,
            VectorRegister::Mmx(n) => self.mmx[usize::from(n)].copy_from_slice(&value[..8]),
            VectorRegister::Xmm(n) => self.ymm[usize::from(n)][..16].copy_from_slice(&value[..16]),
            VectorRegister::Ymm(n) => self.ymm[usize::from(n)] = value,
            VectorRegister::Mxcsr => self.mxcsr.copy_from_slice(&value[..4]),
        }
        Some(())
    }

    fn load_machine_status(&mut self, status: u16) {
        self.cr0 = Cr0::from_bits_retain(self.cr0.bits() & !0xe | u64::from(status & 0xf));
    }

    fn counts_zeros(&self, _: ScanOp) -> bool {
        true
    }

    fn mode(&self) -> CpuMode {
        self.mode
    }

    fn alignment_check(&self) -> bool {
        self.alignment_check
    }

    fn read(&mut self, linear: u64, buffer: &mut [u8], kind: AccessKind) -> Result<(), Fault<()>> {
        self.accesses += 1;
        let at = self.check(linear, buffer.len(), kind == AccessKind::ReadForWrite)?;
        buffer.copy_from_slice(&self.memory[at..][..buffer.len()]);
        Ok(())
    }

    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Fault<()>> {
        self.accesses += 1;
        let at = self.check(linear, data.len(), true)?;
        self.memory[at..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read_system(&mut self, linear: u64, buffer: &mut [u8]) -> Result<(), Fault<()>> {
        self.read(linear, buffer, AccessKind::Read)
    }

    fn write_system(&mut self, linear: u64, data: &[u8]) -> Result<(), Fault<()>> {
        self.write(linear, data)
    }

    fn probe_write(&mut self, linear: u64, len: usize) -> Result<(), Fault<()>> {
        self.check(linear, len, true)?;
        Ok(())
    }

    fn compare_exchange(
        &mut self,
        linear: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Fault<()>> {
        self.accesses += 1;
        let at = self.check(linear, width.bytes(), true)?;
        let mut bytes = [0; 8];
        let place = &mut self.memory[at..][..width.bytes()];
        if self.contention > 0 {
            self.contention -= 1;
            place[0] = place[0].wrapping_add(1);
        }
        bytes[..width.bytes()].copy_from_slice(place);
        let found = u64::from_le_bytes(bytes);
        if found == current {
            place.copy_from_slice(&new.to_le_bytes()[..width.bytes()]);
        }
        Ok(found)
    }

    fn compare_exchange16(
        &mut self,
        linear: u64,
        current: u128,
        new: u128,
    ) -> Result<u128, Fault<()>> {
        self.accesses += 1;
        let at = self.check(linear, 16, true)?;
        let place = &mut self.memory[at..][..16];
        let found = u128::from_le_bytes(place.try_into().expect("16 bytes"));
        if found == current {
            place.copy_from_slice(&new.to_le_bytes());
        }
        Ok(found)
    }

    fn fetch(&mut self, linear: u64, buffer: &mut [u8]) -> Result<usize, Fault<()>> {
        self.check(linear, 1, false)?;
        let mut n = 0;
        while n < buffer.len() && self.check(linear, n + 1, false).is_ok() {
            n += 1;
        }
        buffer[..n].copy_from_slice(&self.memory[linear as usize..][..n]);
        Ok(n)
    }
}
