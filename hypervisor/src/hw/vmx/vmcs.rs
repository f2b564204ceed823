//! The VMX instructions, and a VMCS that knows when it is current.

use crate::cpu::percpu::{self, MAX_CPUS};
use crate::error::HostError;
use crate::mm;
use core::arch::asm;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};
use x86defs::HostPhysAddr;
use x86defs::bits::Low;
use x86defs::vmcs::{Field16, Field32, Field64, FieldNatural, InstructionError};

/// A field with the type of its value.
pub(super) trait Field: Copy {
    /// Type of its value.
    type Value: Copy + Default;
    /// Its encoding.
    fn code(self) -> u64;
    /// From what VMREAD returns.
    fn narrow(raw: u64) -> Self::Value;
    /// To what VMWRITE takes.
    fn widen(value: Self::Value) -> u64;
}

macro_rules! field {
    ($($type:ty, $value:ty, $narrow:expr;)*) => {$(
        impl Field for $type {
            type Value = $value;

            #[inline(always)]
            fn code(self) -> u64 {
                self.0.into()
            }

            #[inline(always)]
            fn narrow(raw: u64) -> $value {
                $narrow(raw)
            }

            #[inline(always)]
            fn widen(value: $value) -> u64 {
                value.into()
            }
        }
    )*};
}

field! {
    Field16, u16, |raw: u64| raw.low16();
    Field32, u32, |raw: u64| raw.low32();
    Field64, u64, |raw| raw;
    FieldNatural, u64, |raw| raw;
}

/// Writes the revision into the first word of a VMCS or VMXON region.
pub(super) fn set_revision(region: HostPhysAddr, revision: u32) {
    let pointer = mm::direct(region) as *mut u32;
    // SAFETY: the region is a page of ours that the CPU does not use yet.
    unsafe { pointer.write(revision) };
}

/// Enters VMX operation; `false` if the CPU refuses.
///
/// # Safety
/// CR4.VMXE must be set, firmware must allow it, and `region` is a page with
/// the revision that stays the CPU's.
pub(super) unsafe fn vmxon(region: HostPhysAddr) -> bool {
    let operand = region.as_u64();
    let failed: u8;
    // SAFETY: the caller vouches for the region.
    unsafe {
        asm!("vmxon [{}]", "setbe {}", in(reg) &raw const operand, out(reg_byte) failed,
             options(nostack));
    }
    failed == 0
}

/// Writes a VMCS back to its region, and forgets that it was launched.
///
/// # Safety
/// The CPU must be in VMX operation, and `region` a VMCS of the caller's.
unsafe fn vmclear(region: HostPhysAddr) -> bool {
    let operand = region.as_u64();
    let failed: u8;
    // SAFETY: the caller vouches for the region.
    unsafe {
        asm!("vmclear [{}]", "setbe {}", in(reg) &raw const operand, out(reg_byte) failed,
             options(nostack));
    }
    failed == 0
}

/// Makes a VMCS current.
///
/// # Safety
/// As for [`vmclear`].
unsafe fn vmptrld(region: HostPhysAddr) -> bool {
    let operand = region.as_u64();
    let failed: u8;
    // SAFETY: the caller vouches for the region.
    unsafe {
        asm!("vmptrld [{}]", "setbe {}", in(reg) &raw const operand, out(reg_byte) failed,
             options(nostack));
    }
    failed == 0
}

/// Forgets what was cached through the EPT pointer `ept_pointer`
/// (SDM: "INVEPT—Invalidate Translations Derived from EPT").
pub(super) fn invalidate_ept(ept_pointer: u64) {
    const SINGLE_CONTEXT: u64 = 1;
    let descriptor = [ept_pointer, 0];
    // SAFETY: the CPU is in VMX operation wherever a vCPU exists, and offers
    // this type; forgetting translations is always safe.
    unsafe {
        asm!("invept {}, [{}]", in(reg) SINGLE_CONTEXT, in(reg) &raw const descriptor,
             options(nostack));
    }
}

/// Which translations an INVVPID forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Invvpid {
    /// Translations of one identifier.
    Single = 1,
    /// Translations of all identifiers.
    All = 2,
}

/// Forgets what was cached in the name of `vpid`, not 0, or of all
/// (SDM: "INVVPID—Invalidate Translations Based on VPID").
pub(super) fn invalidate_vpid(kind: Invvpid, vpid: u16) {
    let descriptor = [u64::from(vpid), 0];
    // SAFETY: VPIDs are used only where the CPU offers both types; forgetting
    // translations is always safe.
    unsafe {
        asm!("invvpid {}, [{}]", in(reg) kind as u64, in(reg) &raw const descriptor,
             options(nostack));
    }
}

/// The VMCS that is current on each CPU; 0 for none.
static CURRENT: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// The one on this CPU.
#[inline]
fn on_this_cpu() -> &'static AtomicU64 {
    &CURRENT[percpu::this().index() % MAX_CPUS]
}

/// A VMCS.
#[derive(Debug)]
pub(super) struct Vmcs {
    region: HostPhysAddr,
    /// It is current on the CPU that its vCPU has, until it is cleared.
    held: bool,
}

impl Vmcs {
    /// A clear VMCS.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    pub(super) fn new(revision: u32) -> Result<Self, HostError> {
        let region = mm::allocate_page().ok_or(HostError::OutOfMemory("a VMCS"))?;
        set_revision(region, revision);
        // SAFETY: VMX operation is on, and the page was just taken. It can't
        // fail: the address is a page's and not the VMXON region's.
        unsafe { vmclear(region) };
        Ok(Self { region, held: false })
    }

    /// Makes it current for as long as its vCPU has this CPU: until it is
    /// [cleared](Self::clear), no other VMCS is used here.
    pub(super) fn hold(&mut self) {
        self.make_current();
        self.held = true;
    }

    /// Makes it current, if it is not, for its fields to be used.
    #[inline(always)]
    pub(super) fn current(&self) -> Current<'_> {
        if !self.held {
            self.make_current();
        }
        Current(PhantomData)
    }

    #[cold]
    fn make_current(&self) {
        let current = on_this_cpu();
        if current.load(Ordering::Relaxed) != self.region.as_u64() {
            // SAFETY: the region is this VMCS's own. It can't fail: the
            // revision is the CPU's.
            unsafe { vmptrld(self.region) };
            current.store(self.region.as_u64(), Ordering::Relaxed);
        }
    }

    /// Writes it back to memory, where another CPU can load it from. It counts
    /// as never launched then.
    pub(super) fn clear(&mut self) {
        self.held = false;
        // SAFETY: the region is this VMCS's own, and it is not entered from.
        unsafe { vmclear(self.region) };
        let own = self.region.as_u64();
        let _ = on_this_cpu().compare_exchange(own, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        // A CPU that it is current on no more has cleared it.
        self.clear();
        mm::free_page(self.region);
    }
}

/// Proof that a VMCS is current.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current<'a>(PhantomData<&'a Vmcs>);

impl Current<'_> {
    /// The proof, where no [`Vmcs`] is at hand.
    ///
    /// # Safety
    /// A VMCS must be current on this CPU and stay so.
    pub(super) unsafe fn assume() -> Self {
        Self(PhantomData)
    }

    /// A field, if the CPU has it.
    pub(super) fn try_read<F: Field>(self, field: F) -> Option<F::Value> {
        let value: u64;
        let failed: u8;
        // SAFETY: a VMCS is current; VMREAD of whatever field reads it or fails.
        unsafe {
            asm!("vmread {}, {}", "setbe {}", out(reg) value, in(reg) field.code(),
                 out(reg_byte) failed, options(nomem, nostack));
        }
        (failed == 0).then(|| F::narrow(value))
    }

    /// A field that every CPU we run on has.
    #[inline(always)]
    pub(super) fn read<F: Field>(self, field: F) -> F::Value {
        let value: u64;
        // SAFETY: a VMCS is current. VMREAD does not fail; if it did, the value
        // would be whatever stood in the register.
        unsafe {
            asm!("vmread {0}, {1}", out(reg) value, in(reg) field.code(),
                 options(nomem, nostack));
        }
        F::narrow(value)
    }

    /// Sets a field that every CPU we run on has.
    #[inline(always)]
    pub(super) fn write<F: Field>(self, field: F, value: F::Value) {
        // SAFETY: a VMCS is current. The entry checks the field's value; fields that
        // give a guest power are set by `VmxVcpu` alone.
        unsafe {
            asm!("vmwrite {}, {}", in(reg) field.code(), in(reg) F::widen(value),
                 options(nomem, nostack));
        }
    }

    /// Why the last VMX instruction failed.
    pub(super) fn error(self) -> InstructionError {
        InstructionError(self.read(Field32::INSTRUCTION_ERROR))
    }
}
