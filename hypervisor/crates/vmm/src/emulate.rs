//! A vCPU as the instruction emulator sees it: registers of the backend,
//! linear memory through the guest's own page tables, RAM or devices behind.

use crate::backend::Backend;
use crate::end::VmError;
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use devices::lapic::Ticks;
use memory::slots;
use memory::walk::{Access, GuestPageTables, Translation, WalkConfig, WalkError, walk};
use memory::{GuestRam, MemoryError};
use x86defs::addr::PAGE_SIZE;
use x86defs::control::CpuMode;
use x86defs::exit::{NestedAccess, NestedFault};
use x86defs::time::Nanos;
use x86defs::{
    Cr0, Cr4, DescriptorTable, Exception, Gpr, GuestPhysAddr, GuestVirtAddr, Low, Rflags, Segment,
    SegmentRegister, VectorRegister, Width, Xcr0,
};
use x86emu::{
    AccessKind, Cpu, Decoded, DescriptorRegister, Fault, GuestException, Instruction,
    MAX_INSTRUCTION, ScanOp,
};

/// CPUID leaf 7 EBX: TZCNT, with the rest of BMI1.
const LEAF7_EBX_BMI1: u32 = 1 << 3;
/// CPUID leaf 0x8000_0001 ECX: LZCNT.
const EXTENDED1_ECX_LZCNT: u32 = 1 << 5;

/// The guest's page tables, in its RAM.
struct Tables<'a, M>(&'a M);

impl<M: GuestRam> GuestPageTables for Tables<'_, M> {
    type Error = MemoryError;

    #[inline]
    fn read_entry(&mut self, gpa: GuestPhysAddr, width: Width) -> Result<u64, MemoryError> {
        self.0.load([gpa], width).map(|[entry]| entry)
    }

    #[inline]
    fn read_entries<const N: usize>(
        &mut self,
        places: [GuestPhysAddr; N],
        width: Width,
    ) -> Result<[u64; N], MemoryError> {
        self.0.load(places, width)
    }

    fn compare_exchange(
        &mut self,
        gpa: GuestPhysAddr,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        self.0.compare_exchange(gpa, width, current, new)
    }
}

/// A vCPU under emulation.
pub(crate) struct Emulated<'a, B, M> {
    pub(crate) vcpu: &'a mut Vcpu<B>,
    pub(crate) vm: &'a Vm<M>,
    /// The host's time.
    tsc: u64,
    mode: CpuMode,
    /// The last translation, for the next access of the same instruction:
    /// linear page, guest-physical page, rights.
    cached: Option<(u64, GuestPhysAddr, Rights)>,
    /// The read that exited, until its instruction is known: the CPU's own translation serves
    /// where it is the instruction's only access.
    exited: Option<NestedFault>,
    /// The CPU itself accesses its descriptor tables.
    system: bool,
}

/// Kind of access that a cached translation was made for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rights {
    Read,
    Write,
}

impl<'a, B: Backend, M: GuestRam> Emulated<'a, B, M> {
    /// At the host's time `tsc`, for an instruction that has caused `fault`, if it has.
    #[inline]
    pub(crate) fn new(
        vcpu: &'a mut Vcpu<B>,
        vm: &'a Vm<M>,
        tsc: u64,
        fault: Option<NestedFault>,
    ) -> Self {
        let others = NestedAccess::WRITE | NestedAccess::FETCH | NestedAccess::WALK;
        let exited = fault.filter(|fault| !fault.access.intersects(others));
        let mode = vcpu.mode();
        Self { vcpu, vm, tsc, mode, cached: None, exited, system: false }
    }

    /// The guest's TSC.
    fn ticks(&self) -> Ticks {
        Ticks(self.vcpu.core.line.ticks(self.tsc))
    }

    /// The guest's time.
    fn now(&self) -> Nanos {
        self.vcpu.core.line.now(self.tsc)
    }

    fn config(&self) -> WalkConfig {
        let mut config = self.vcpu.walk_config();
        // An emulated write is made with the rights of the instruction.
        if cfg!(planted = "emulated-write-privilege") {
            config.cpl = 0;
        }
        if self.system {
            config.cpl = 0;
            config.rflags.remove(Rflags::AC);
        }
        config
    }

    /// Translates one byte's address.
    pub(crate) fn translate(
        &mut self,
        linear: u64,
        access: Access,
    ) -> Result<GuestPhysAddr, Fault<VmError>> {
        if access == Access::Read
            && let Some(fault) = self.exited.take()
            && Self::is_of(&fault, linear)
        {
            return Ok(fault.gpa);
        }
        if !self.vcpu.cr0().contains(Cr0::PG) {
            return Ok(GuestPhysAddr::new(linear & 0xffff_ffff));
        }
        let page = linear & !(PAGE_SIZE - 1);
        if let Some((cached, gpa, rights)) = self.cached
            && cached == page
            && (access == Access::Read || access == Access::Write && rights == Rights::Write)
        {
            return Ok(gpa.wrapping_add(linear - page));
        }
        let config = self.config();
        let tables = &mut Tables(&self.vm.memory);
        let gva = GuestVirtAddr::new(linear);
        let found = if access == Access::Fetch {
            self.vcpu.fetched.walk(&config, tables, gva, access)
        } else {
            walk(&config, tables, gva, access)
        };
        match found {
            Ok(Translation { gpa, .. }) => {
                if access != Access::Fetch {
                    let rights = if access == Access::Write { Rights::Write } else { Rights::Read };
                    self.cached = Some((page, gpa.align_down(PAGE_SIZE), rights));
                }
                Ok(gpa)
            }
            Err(WalkError::PageFault(code)) => {
                Err(GuestException::page_fault(linear, code.bits()).into())
            }
            Err(WalkError::NonCanonical) => {
                Err(GuestException::with_zero(Exception::GP, self.mode).into())
            }
            Err(WalkError::Contended) => {
                let table = GuestPhysAddr::new(self.vcpu.cr3()).align_down(PAGE_SIZE);
                Err(Fault::Host(MemoryError::Moved(table).into()))
            }
            Err(WalkError::Memory(error)) => Err(Fault::Host(error.into())),
        }
    }

    /// Has the accesses of `serve` made by the CPU itself, to its descriptor tables: with the
    /// rights of a supervisor, which RFLAGS.AC does not widen.
    fn as_system<T>(
        &mut self,
        serve: impl FnOnce(&mut Self) -> Result<T, Fault<VmError>>,
    ) -> Result<T, Fault<VmError>> {
        self.cached = None;
        self.system = true;
        let served = serve(self);
        self.cached = None;
        self.system = false;
        served
    }

    /// The address of a naturally aligned read that has exited, as no RAM is there, if this is it.
    #[inline]
    fn exited_at(&mut self, linear: u64, len: usize, access: Access) -> Option<GuestPhysAddr> {
        let exited = self.exited.as_ref().filter(|fault| Self::is_of(fault, linear))?;
        let gpa = exited.gpa;
        if access != Access::Read || !len.is_power_of_two() || !gpa.is_aligned(len as u64) {
            return None;
        }
        self.exited = None;
        Some(gpa)
    }

    /// Whether the CPU itself could write `len` bytes at `linear`.
    pub(crate) fn probe_system(&mut self, linear: u64, len: usize) -> Result<(), Fault<VmError>> {
        self.as_system(|cpu| cpu.probe_write(linear, len))
    }

    /// Takes the mode, and translations, as the vCPU's registers now have them.
    pub(crate) fn renew(&mut self) {
        self.mode = self.vcpu.mode();
        self.cached = None;
    }

    /// Whether the read that exited was of `linear`, of one that its instruction makes.
    fn is_of(fault: &NestedFault, linear: u64) -> bool {
        match fault.gva {
            Some(gva) => gva.as_u64() == linear,
            None => fault.gpa.as_u64() % PAGE_SIZE == linear % PAGE_SIZE,
        }
    }

    /// Splits an access at page boundaries: length of the first part.
    fn first_part(linear: u64, len: usize) -> usize {
        let room = PAGE_SIZE - linear % PAGE_SIZE;
        usize::try_from(room).unwrap_or(len).min(len)
    }

    /// Addresses of an access of up to 64 bytes: of its start, and of its part in a second page, if
    /// any.
    fn translate_range(
        &mut self,
        linear: u64,
        len: usize,
        access: Access,
    ) -> Result<(GuestPhysAddr, Option<GuestPhysAddr>), Fault<VmError>> {
        let first = self.translate(linear, access)?;
        let part = Self::first_part(linear, len);
        if part == len {
            return Ok((first, None));
        }
        let next = linear.wrapping_add(part as u64);
        let next = if self.mode == CpuMode::Long64 { next } else { next & 0xffff_ffff };
        Ok((first, Some(self.translate(next, access)?)))
    }

    fn physical_read(&mut self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), VmError> {
        if self.vm.memory.is_ram(gpa) {
            return Ok(self.vm.memory.read(gpa, buffer)?);
        }
        if let Some(width) = Width::from_bytes(buffer.len())
            && gpa.is_aligned(width.bytes() as u64)
        {
            self.read_register(gpa, width, buffer);
            return Ok(());
        }
        let mut at = gpa;
        for chunk in device_chunks_mut(gpa, buffer) {
            let width = Width::from_bytes(chunk.len()).unwrap_or(Width::B1);
            let value = self.device_read(at, width);
            for (byte, new) in chunk.iter_mut().zip(value.to_le_bytes()) {
                *byte = new;
            }
            at = at.wrapping_add(chunk.len() as u64);
        }
        Ok(())
    }

    fn physical_write(&mut self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), VmError> {
        match self.vm.memory.rights(gpa) {
            Some(slots::Rights::Rom) => return Ok(()),
            Some(slots::Rights::Ram) => return Ok(self.vm.memory.write(gpa, data)?),
            None => {}
        }
        let mut at = gpa;
        for len in device_lengths(gpa, data.len()) {
            let offset = usize::try_from(at.as_u64() - gpa.as_u64()).unwrap_or(0);
            let value = data
                .iter()
                .skip(offset)
                .take(len)
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte));
            self.device_write(at, Width::from_bytes(len).unwrap_or(Width::B1), value);
            at = at.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// A naturally aligned read of a device, of as many bytes as `buffer` has.
    #[inline]
    fn read_register(&mut self, gpa: GuestPhysAddr, width: Width, buffer: &mut [u8]) {
        let value = self.device_read(gpa, width);
        // Copies of a length that is known when compiled.
        match width {
            Width::B4 if let Some(whole) = buffer.first_chunk_mut() => {
                *whole = value.low32().to_le_bytes();
            }
            _ => buffer.iter_mut().zip(value.to_le_bytes()).for_each(|(to, byte)| *to = byte),
        }
    }

    fn device_read(&mut self, gpa: GuestPhysAddr, width: Width) -> u64 {
        match self.lapic_offset(gpa) {
            Some(offset) => {
                let ticks = self.ticks();
                let read = self.vcpu.core.lapic.mmio_read(offset, width, ticks);
                read.map_or(width.mask(), u64::from)
            }
            None => self.vm.board.mmio_read(gpa, width, || self.now()),
        }
    }

    fn device_write(&mut self, gpa: GuestPhysAddr, width: Width, value: u64) {
        match self.lapic_offset(gpa) {
            Some(offset) => {
                let ticks = self.ticks();
                let effect = self.vcpu.core.lapic.mmio_write(offset, width, value.low32(), ticks);
                // A width or register that is not there: the write is lost.
                if let Ok(effect) = effect {
                    crate::apic::apply(self.vcpu, self.vm, effect);
                }
            }
            None => self.vm.board.mmio_write(gpa, width, value, || self.now()),
        }
    }

    fn lapic_offset(&self, gpa: GuestPhysAddr) -> Option<u64> {
        let base = self.vcpu.core.lapic.window()?;
        let offset = gpa.checked_offset_from(GuestPhysAddr::new(base))?;
        (offset < PAGE_SIZE).then_some(offset)
    }
}

/// Device accesses keep the width of the instruction where they are aligned;
/// others fall apart into naturally aligned pieces.
fn device_lengths(gpa: GuestPhysAddr, len: usize) -> impl Iterator<Item = usize> {
    let mut at = gpa.as_u64();
    let mut left = len;
    core::iter::from_fn(move || {
        let len =
            [8usize, 4, 2, 1].into_iter().find(|n| *n <= left && at.is_multiple_of(*n as u64))?;
        at = at.wrapping_add(len as u64);
        left -= len;
        Some(len)
    })
}

fn device_chunks_mut(gpa: GuestPhysAddr, buffer: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    let mut lengths = device_lengths(gpa, buffer.len());
    let mut rest = buffer;
    core::iter::from_fn(move || {
        let len = lengths.next()?;
        let (chunk, tail) = core::mem::take(&mut rest).split_at_mut_checked(len)?;
        rest = tail;
        Some(chunk)
    })
}

impl<B: Backend, M: GuestRam> Cpu for Emulated<'_, B, M> {
    type Error = VmError;

    fn gpr(&self, gpr: Gpr) -> u64 {
        self.vcpu.gpr(gpr)
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.vcpu.set_gpr(gpr, value);
    }

    fn rip(&self) -> u64 {
        self.vcpu.rip()
    }

    fn set_rip(&mut self, rip: u64) {
        self.vcpu.set_rip(rip);
    }

    fn rflags(&self) -> Rflags {
        self.vcpu.rflags()
    }

    fn set_rflags(&mut self, rflags: Rflags) {
        self.vcpu.set_rflags(rflags);
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        self.vcpu.segment(register)
    }

    fn decoded(&mut self) -> Option<&mut Decoded> {
        Some(&mut self.vcpu.decoded)
    }

    fn decodes_generally(&mut self) {
        self.vcpu.core.counters.general_decodes += 1;
    }

    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.vcpu.set_segment(register, segment);
    }

    fn descriptor_table(&self, register: DescriptorRegister) -> DescriptorTable {
        match register {
            DescriptorRegister::Gdtr => self.vcpu.gdtr(),
            DescriptorRegister::Idtr => self.vcpu.idtr(),
        }
    }

    fn set_descriptor_table(&mut self, register: DescriptorRegister, table: DescriptorTable) {
        match register {
            DescriptorRegister::Gdtr => self.vcpu.set_gdtr(table),
            DescriptorRegister::Idtr => self.vcpu.set_idtr(table),
        }
    }

    fn cpl(&self) -> u8 {
        self.vcpu.cpl()
    }

    fn cr0(&self) -> Cr0 {
        self.vcpu.cr0()
    }

    fn cr4(&self) -> Cr4 {
        self.vcpu.cr4()
    }

    fn xcr0(&self) -> Xcr0 {
        Xcr0::from_bits_retain(self.vcpu.core.xcr0)
    }

    fn vector(&mut self, register: VectorRegister) -> Option<[u8; 32]> {
        self.vcpu.hw.vector(register)
    }

    fn set_vector(&mut self, register: VectorRegister, value: [u8; 32]) -> Option<()> {
        self.vcpu.hw.set_vector(register, value)
    }

    fn load_machine_status(&mut self, status: u16) {
        self.vcpu.load_machine_status(status);
    }

    fn counts_zeros(&self, op: ScanOp) -> bool {
        let core = &self.vcpu.core;
        let view = core.view(self.vcpu.cr4());
        if op == ScanOp::LeadingZeros {
            core.cpuid.lookup(0x8000_0001, 0, &view).ecx & EXTENDED1_ECX_LZCNT != 0
        } else {
            core.cpuid.lookup(7, 0, &view).ebx & LEAF7_EBX_BMI1 != 0
        }
    }

    fn begin(&mut self, instruction: &Instruction) {
        if !instruction.has_one_place() {
            self.exited = None;
        }
    }

    fn mode(&self) -> CpuMode {
        self.mode
    }

    fn alignment_check(&self) -> bool {
        let vcpu = &self.vcpu;
        vcpu.cpl() == 3 && vcpu.cr0().contains(Cr0::AM) && vcpu.rflags().contains(Rflags::AC)
    }

    fn read(
        &mut self,
        linear: u64,
        buffer: &mut [u8],
        kind: AccessKind,
    ) -> Result<(), Fault<VmError>> {
        let access = match kind {
            AccessKind::Read => Access::Read,
            AccessKind::ReadForWrite => Access::Write,
        };
        if let Some(gpa) = self.exited_at(linear, buffer.len(), access)
            && let Some(width) = Width::from_bytes(buffer.len())
        {
            self.read_register(gpa, width, buffer);
            return Ok(());
        }
        let (first, second) = self.translate_range(linear, buffer.len(), access)?;
        let part = Self::first_part(linear, buffer.len());
        let (head, tail) = buffer.split_at_mut(part);
        self.physical_read(first, head).map_err(Fault::Host)?;
        match second {
            Some(second) => self.physical_read(second, tail).map_err(Fault::Host),
            None => Ok(()),
        }
    }

    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Fault<VmError>> {
        let (first, second) = self.translate_range(linear, data.len(), Access::Write)?;
        let (head, tail) = data.split_at(Self::first_part(linear, data.len()));
        self.physical_write(first, head).map_err(Fault::Host)?;
        match second {
            Some(second) => self.physical_write(second, tail).map_err(Fault::Host),
            None => Ok(()),
        }
    }

    fn read_system(&mut self, linear: u64, buffer: &mut [u8]) -> Result<(), Fault<VmError>> {
        self.as_system(|cpu| cpu.read(linear, buffer, AccessKind::Read))
    }

    fn write_system(&mut self, linear: u64, data: &[u8]) -> Result<(), Fault<VmError>> {
        self.as_system(|cpu| cpu.write(linear, data))
    }

    fn probe_write(&mut self, linear: u64, len: usize) -> Result<(), Fault<VmError>> {
        self.translate_range(linear, len, Access::Write).map(|_| ())
    }

    fn compare_exchange(
        &mut self,
        linear: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Fault<VmError>> {
        let len = width.bytes();
        let (first, second) = self.translate_range(linear, len, Access::Write)?;
        let ram = self.vm.memory.rights(first) == Some(slots::Rights::Ram);
        if second.is_none() && ram && first.is_aligned(len as u64) {
            return self
                .vm
                .memory
                .compare_exchange(first, width, current, new)
                .map_err(|error| Fault::Host(error.into()));
        }
        // A device, or an operand that no single access covers.
        let mut bytes = [0; 8];
        if let Some(old) = bytes.get_mut(..len) {
            self.read(linear, old, AccessKind::ReadForWrite)?;
        }
        let old = u64::from_le_bytes(bytes);
        if old == width.truncate(current) {
            let new = new.to_le_bytes();
            self.write(linear, new.get(..len).unwrap_or(&new))?;
        }
        Ok(old)
    }

    fn compare_exchange16(
        &mut self,
        linear: u64,
        current: u128,
        new: u128,
    ) -> Result<u128, Fault<VmError>> {
        let mut bytes = [0; 16];
        self.read(linear, &mut bytes, AccessKind::ReadForWrite)?;
        let old = u128::from_le_bytes(bytes);
        if old == current {
            self.write(linear, &new.to_le_bytes())?;
        }
        Ok(old)
    }

    fn fetch(&mut self, linear: u64, buffer: &mut [u8]) -> Result<usize, Fault<VmError>> {
        let gpa = self.translate(linear, Access::Fetch)?;
        let part = Self::first_part(linear, buffer.len());
        if let Ok(whole) = <&mut [u8; MAX_INSTRUCTION]>::try_from(&mut *buffer)
            && part == MAX_INSTRUCTION
        {
            // Two loads, which overlap, cost less than a copy. The byte that both have is the
            // first one's: another vCPU may write it meanwhile.
            let loaded = self.vm.memory.load([gpa, gpa.wrapping_add(7)], Width::B8);
            let [first, last] = loaded.map_err(|error| Fault::Host(error.into()))?;
            let both = u128::from(first) | u128::from(last >> 8) << 64;
            let [bytes @ .., _] = both.to_le_bytes();
            *whole = bytes;
            return Ok(part);
        }
        let (head, tail) = buffer.split_at_mut(part);
        self.vm.memory.read(gpa, head).map_err(|error| Fault::Host(error.into()))?;
        if tail.is_empty() {
            return Ok(part);
        }
        let next = linear.wrapping_add(part as u64);
        let next = if self.mode == CpuMode::Long64 { next } else { next & 0xffff_ffff };
        match self.translate(next, Access::Fetch) {
            Ok(gpa) if self.vm.memory.read(gpa, tail).is_ok() => Ok(buffer.len()),
            _ => Ok(part),
        }
    }
}
