//! State that neither vendor's entry switches: extended registers, debug
//! registers, TSC_AUX.

use crate::cpu::{asm, msr, percpu};
use crate::error::HostError;
use crate::mm;
use core::arch::asm;
use core::sync::atomic::Ordering;
use spin::Once;
use x86_64::registers::control::{Cr4 as HostCr4, Cr4Flags};
use x86defs::bits::{Low, high32};
use x86defs::{Cr4, HostPhysAddr, Msr};

/// XCR0, if the hypervisor has CR4.OSXSAVE set.
pub(super) fn xgetbv_if_enabled() -> Option<u64> {
    if !HostCr4::read().contains(Cr4Flags::OSXSAVE) {
        return None;
    }
    let (low, high): (u32, u32);
    // SAFETY: CR4.OSXSAVE is set, so the instruction exists.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    Some(x86defs::bits::join(high, low))
}

/// State that neither vendor's entry switches. The hypervisor uses none of it, so it is in the
/// registers of the CPU for as long as the vCPU has that CPU.
#[derive(Debug)]
pub(super) struct Extra {
    /// XCR0 of the hypervisor, while the vCPU's is in the CPU.
    host_xcr0: Option<u64>,
    /// The vCPU has a CPU.
    loaded: bool,
    xcr0: u64,
    /// DR0 to DR3, while they are not in the CPU.
    breakpoints: [u64; 4],
}

impl Extra {
    /// As after reset.
    pub(super) const fn new() -> Self {
        Self { host_xcr0: None, loaded: false, xcr0: 1, breakpoints: [0; 4] }
    }

    /// Whether the vCPU has a CPU.
    pub(super) const fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// The vCPU gets this CPU, with these values.
    pub(super) fn load(&mut self, xcr0: u64, tsc_aux: u64) {
        self.host_xcr0 = xgetbv_if_enabled();
        self.loaded = true;
        // Another value is written without a look at it: it may be of another CPU.
        self.xcr0 = self.host_xcr0.unwrap_or(xcr0);
        self.set_xcr0(xcr0);
        write_debug(self.breakpoints);
        load_tsc_aux(tsc_aux);
    }

    /// The vCPU loses its CPU, if it has one.
    pub(super) fn unload(&mut self) {
        if !core::mem::take(&mut self.loaded) {
            return;
        }
        self.breakpoints = read_debug();
        write_debug([0; 4]);
        if let Some(host) = self.host_xcr0.take()
            && host != self.xcr0
        {
            // SAFETY: the value was read from the register before.
            unsafe { asm::xsetbv(host) };
        }
    }

    /// Sets XCR0, to a value that was checked against what the CPU offers.
    pub(super) fn set_xcr0(&mut self, value: u64) {
        if self.host_xcr0.is_some() && self.xcr0 != value && !cfg!(planted = "xcr0-leaked") {
            // SAFETY: the caller vouches for the value; CR4.OSXSAVE is set.
            unsafe { asm::xsetbv(value) };
        }
        self.xcr0 = value;
    }

    /// XCR0 as the guest has it, on an emulator where it changes that without an exit.
    pub(super) fn look_at_xcr0(&mut self) -> u64 {
        self.xcr0 = xgetbv_if_enabled().unwrap_or(self.xcr0);
        self.xcr0
    }

    /// Sets TSC_AUX, which RDTSCP and RDPID read in the CPU.
    pub(super) fn set_tsc_aux(&self, value: u64) {
        if self.loaded {
            load_tsc_aux(value);
        }
    }

    /// PKRU, whose state moves with the extended registers: 0, all rights, for a vCPU that has no
    /// CPU, at which only the operator looks. The CPU must have protection keys.
    pub(super) fn pkru(&self) -> u32 {
        if self.loaded { read_pkru() } else { 0 }
    }

    /// DR0 to DR3.
    pub(super) fn breakpoints(&self) -> [u64; 4] {
        if self.loaded { read_debug() } else { self.breakpoints }
    }

    /// Sets DR0 to DR3.
    pub(super) fn set_breakpoints(&mut self, values: [u64; 4]) {
        self.breakpoints = values;
        if self.loaded {
            write_debug(values);
        }
    }
}

fn load_tsc_aux(value: u64) {
    let held = &percpu::this().tsc_aux;
    if held.load(Ordering::Relaxed) != value {
        held.store(value, Ordering::Relaxed);
        // SAFETY: the register is the guests' own. If it does not exist, guests
        // are not offered the instructions that read it.
        let _ = unsafe { msr::try_write(Msr::TSC_AUX, value) };
    }
}

/// PKRU. The hypervisor has keys switched off: they would hold for its accesses to guests' memory
/// too.
fn read_pkru() -> u32 {
    let cr4 = HostCr4::read();
    let pkru: u32;
    // SAFETY: the CPU has protection keys. While they are on, nothing but the stack and code is
    // accessed, which are no user pages.
    unsafe { HostCr4::write(cr4 | Cr4Flags::PROTECTION_KEY_USER) };
    // SAFETY: keys are switched on.
    unsafe {
        asm!("rdpkru", in("ecx") 0, out("eax") pkru, out("edx") _, options(nomem, nostack));
    }
    // SAFETY: the value was read from the register before.
    unsafe { HostCr4::write(cr4) };
    pkru
}

fn read_debug() -> [u64; 4] {
    let (d0, d1, d2, d3): (u64, u64, u64, u64);
    // SAFETY: reading debug registers has no effect; DR7.GD is clear in the hypervisor.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
             out(reg) d0, out(reg) d1, out(reg) d2, out(reg) d3, options(nomem, nostack));
    }
    [d0, d1, d2, d3]
}

fn write_debug(values: [u64; 4]) {
    let [d0, d1, d2, d3] = values;
    // SAFETY: DR7 has no breakpoint enabled while the hypervisor runs: an exit sees to that.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
             in(reg) d0, in(reg) d1, in(reg) d2, in(reg) d3, options(nomem, nostack));
    }
}

/// Puts the guest's CR2 into the CPU, where the entry does not.
pub(super) fn write_cr2(value: u64) {
    // SAFETY: CR2 holds the address of the last page fault; the hypervisor
    // reads it in its own handler only, where it was set anew.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// DR6, which VT-x leaves to the hypervisor.
pub(super) fn read_dr6() -> u64 {
    let value: u64;
    // SAFETY: reading a debug register has no effect; DR7.GD is clear in the hypervisor.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack)) };
    value
}

/// Sets DR6.
pub(super) fn write_dr6(value: u64) {
    // SAFETY: the register only reports; its upper half is zero in every value
    // that a guest can set.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack)) };
}

/// An XSAVE area whose header says "everything in its initial state"
/// (SDM: "Operation of XRSTOR"). The legacy part holds MXCSR, which is loaded
/// all the same, and the x87 control word for CPUs that have FXRSTOR only.
#[repr(C, align(64))]
struct InitialState([u8; 1024]);

static INITIAL: InitialState = {
    let mut area = [0; 1024];
    // FCW = 0x037f, MXCSR = 0x1f80: their values after reset.
    area[0] = 0x7f;
    area[1] = 0x03;
    area[24] = 0x80;
    area[25] = 0x1f;
    InitialState(area)
};

/// Those of [`COMPONENTS`] that the machine has. CPUID is slow, on hardware too.
static SUPPORTED: Once<u64> = Once::new();

/// The components that guests may have, as XSAVE's mask.
const COMPONENTS: u64 = vmm::cpuid::xstate::KNOWN.bits();
/// The standard format puts every one of them into the first page.
const AREA: usize = 4096;

/// The extended state (x87, vector registers) of a vCPU that does not run.
#[derive(Debug)]
pub(crate) struct ExtendedState {
    area: HostPhysAddr,
}

impl ExtendedState {
    /// Bytes of memory that the state of one vCPU takes.
    pub(crate) const BYTES: usize = 4096;

    /// The state after reset: a new vCPU finds nothing of firmware's or of
    /// another guest.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    pub(crate) fn new() -> Result<Self, HostError> {
        let area = mm::allocate_page().ok_or(HostError::OutOfMemory("an XSAVE area"))?;
        let initial = INITIAL.0.as_ptr();
        // SAFETY: the page was just taken, and is longer than the source.
        unsafe {
            core::ptr::copy_nonoverlapping(initial, mm::direct(area) as *mut u8, INITIAL.0.len());
        }
        Ok(Self { area })
    }

    fn pointer(&self) -> *mut u8 {
        mm::direct(self.area) as *mut u8
    }

    /// The bytes, while no CPU has the state.
    #[cfg(feature = "check-entries")]
    pub(crate) fn bytes(&self) -> [u8; AREA] {
        // SAFETY: the area is a page of its own, which nobody writes while it is borrowed.
        unsafe { core::ptr::read(self.pointer().cast()) }
    }

    /// Replaces it, while no CPU has it, by bytes that are known to be such a state.
    #[cfg(feature = "check-entries")]
    pub(crate) fn set_bytes(&mut self, bytes: &[u8; AREA]) {
        // SAFETY: the area is a page of its own, as long as the source.
        unsafe { core::ptr::write(self.pointer().cast(), *bytes) }
    }

    /// Puts it into the CPU.
    pub(crate) fn load(&self) {
        with_components(|how| match how {
            // SAFETY: the area is a page of its own, filled by `new` or `save`;
            // the hypervisor uses none of the registers.
            Save::Xsave => unsafe {
                asm!("xrstor64 [{}]", in(reg) self.pointer(), in("eax") COMPONENTS.low32(),
                     in("edx") high32(COMPONENTS), options(nostack));
            },
            // SAFETY: as for XRSTOR; the first 512 bytes of the area are an FXSAVE image.
            Save::Fxsave => unsafe {
                asm!("fxrstor64 [{}]", in(reg) self.pointer(), options(nostack));
            },
        });
    }

    /// Takes it from the CPU, where it stays too.
    pub(crate) fn save(&mut self) {
        with_components(|how| match how {
            // SAFETY: the area is a page of its own, longer than what the
            // components need; its header is zero or was written by XSAVE.
            Save::Xsave => unsafe {
                asm!("xsave64 [{}]", in(reg) self.pointer(), in("eax") COMPONENTS.low32(),
                     in("edx") high32(COMPONENTS), options(nostack));
            },
            // SAFETY: the area is a page of its own, longer than an FXSAVE image.
            Save::Fxsave => unsafe {
                asm!("fxsave64 [{}]", in(reg) self.pointer(), options(nostack));
            },
        });
    }
}

impl Drop for ExtendedState {
    fn drop(&mut self) {
        mm::free_page(self.area);
    }
}

/// How the CPU saves extended state.
#[derive(Clone, Copy)]
enum Save {
    Xsave,
    Fxsave,
}

/// Calls `f` while every component that the CPU has is enabled.
fn with_components(f: impl FnOnce(Save)) {
    if let Some(before) = xgetbv_if_enabled() {
        let all = *SUPPORTED.call_once(|| {
            let supported = crate::cpu::cpuid_checked(0xd, 0);
            x86defs::bits::join(supported.edx, supported.eax) & COMPONENTS
        });
        // SAFETY: CPUID offers every bit of the value.
        unsafe { crate::cpu::asm::xsetbv(all) };
        f(Save::Xsave);
        // SAFETY: the value was read from the register before.
        unsafe { crate::cpu::asm::xsetbv(before) };
        return;
    }
    f(Save::Fxsave);
}

const _: () = assert!(INITIAL.0.len() <= AREA);

/// CR4.MCE, if it is set on this CPU: with a guest's clear, a machine check while
/// the guest runs would shut the CPU down instead of being told.
pub(super) fn machine_check_of_host() -> Cr4 {
    if HostCr4::read().contains(Cr4Flags::MACHINE_CHECK_EXCEPTION) {
        Cr4::MCE
    } else {
        Cr4::empty()
    }
}
