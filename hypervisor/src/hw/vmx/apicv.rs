//! The local APIC in hardware (SDM: "APIC Virtualization and Virtual
//! Interrupts"), as far as the CPU goes and the guest's settings let it:
//!
//! - nothing: MOV CR8 exits, accesses to the registers are nested faults;
//! - the task priority: the CPU keeps it in the virtual-APIC page, and tells
//!   when it falls below what an interrupt waits for;
//! - everything: the CPU serves reads from the page, delivers interrupts from
//!   it and ends them; only the EOI of a level-triggered one, and writes that do
//!   more than change a register, exit.
//!
//! Which of the two address spaces of the registers is virtualized follows the
//! APIC's mode: the page at its address (xAPIC) or the MSRs (x2APIC).

use super::caps::Caps;
use super::maps::Maps;
use super::vmcs::Current;
use crate::error::HostError;
use crate::hw::GuestApic;
use crate::mm;
use config::ApicAssist;
use devices::lapic::{ApicMode, InterruptStatus, Lapic, VectorSet, VirtualApicPage};
use vmm::backend::InterruptDelivery;
use x86defs::vmcs::{ApicSpace, ControlWords, Field16, Field32, Field64, SecondaryControls};
use x86defs::{HostPhysAddr, Vector};

/// The control words of a vCPU with as much help as `assist` allows.
fn assisted(caps: &Caps, assist: ApicAssist) -> ControlWords {
    match assist {
        ApicAssist::Full if caps.words.delivers_interrupts() => caps.words,
        ApicAssist::Full | ApicAssist::Priority => caps.words.without_delivery(),
        ApicAssist::None => caps.words.without_apic(),
    }
}

/// See [`crate::hw::VendorCpu::watches_apic_page`].
pub(super) fn watches_page(caps: &Caps, assist: ApicAssist) -> bool {
    assisted(caps, assist).secondary.contains(SecondaryControls::VIRTUAL_APIC_ACCESSES)
}

/// See [`crate::hw::VendorCpu::delivers_interrupts`].
pub(super) fn delivers_interrupts(caps: &Caps, assist: ApicAssist) -> bool {
    assisted(caps, assist).delivers_interrupts()
}

/// A vCPU's part of it.
#[derive(Debug)]
pub(super) struct ApicHardware {
    /// The virtual-APIC page.
    page: HostPhysAddr,
    /// This vCPU's control words.
    pub(super) words: ControlWords,
    maps: Maps,
    /// Space in which the controls take the APIC's registers to be.
    space: Option<ApicSpace>,
    /// Copies of values in the VMCS: this one and the next two.
    status: InterruptStatus,
    eoi_exits: VectorSet,
    threshold: u8,
}

impl ApicHardware {
    /// As far as `guest` wants and the CPU goes.
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    pub(super) fn new(caps: &Caps, guest: GuestApic, maps: Maps) -> Result<Self, HostError> {
        let page = mm::allocate_page().ok_or(HostError::OutOfMemory("a virtual-APIC page"))?;
        let words = assisted(caps, guest.assist);
        Ok(Self {
            page,
            words,
            maps,
            space: None,
            status: InterruptStatus::new(),
            eoi_exits: VectorSet::EMPTY,
            threshold: 0,
        })
    }

    /// How interrupts are delivered.
    pub(super) fn delivery(&self) -> InterruptDelivery {
        if self.words.delivers_interrupts() {
            InterruptDelivery::Virtual
        } else {
            InterruptDelivery::Injected
        }
    }

    fn page(&self) -> &VirtualApicPage {
        let pointer = mm::direct(self.page) as *const VirtualApicPage;
        // SAFETY: the page is this vCPU's own, mapped at its direct address for
        // as long as `self` lives, zeroed when it was taken, and made of atomics,
        // so that the CPU may change it while the guest runs.
        unsafe { &*pointer }
    }

    /// The task priority in the page, where the CPU keeps it there.
    pub(super) fn task_priority(&self) -> Option<u8> {
        self.words.keeps_task_priority().then(|| self.page().task_priority())
    }

    /// Fills the fields of a new VMCS.
    pub(super) fn write_controls(&self, v: Current<'_>, access_page: Option<HostPhysAddr>) {
        v.write(Field32::SECONDARY_CONTROLS, self.words.for_apic_mode(ApicSpace::None).bits());
        v.write(Field64::MSR_BITMAP, self.maps.msr.as_u64());
        if self.words.keeps_task_priority() {
            v.write(Field64::VIRTUAL_APIC, self.page.as_u64());
            v.write(Field32::TPR_THRESHOLD, 0);
        }
        if let Some(page) = access_page {
            v.write(Field64::APIC_ACCESS, page.as_u64());
        }
        if self.delivery() == InterruptDelivery::Virtual {
            v.write(Field16::GUEST_INTERRUPT_STATUS, 0);
            write_eoi_exits(v, &VectorSet::EMPTY);
        }
    }

    /// The APIC has changed its mode, or moved.
    fn follow_mode(&mut self, v: Current<'_>, space: ApicSpace) {
        self.space = Some(space);
        let controls = self.words.for_apic_mode(space);
        // A read that does not exit must be one that the CPU virtualizes: else
        // it would be of the machine's own APIC.
        let x2apic = controls.contains(SecondaryControls::VIRTUAL_X2APIC);
        let bitmap = match (x2apic, self.delivery()) {
            (false, _) => self.maps.msr,
            (true, InterruptDelivery::Injected) => self.maps.msr_priority,
            (true, InterruptDelivery::Virtual) => self.maps.msr_apic,
        };
        v.write(Field32::SECONDARY_CONTROLS, controls.bits());
        v.write(Field64::MSR_BITMAP, bitmap.as_u64());
    }

    /// See [`vmm::backend::Backend::give_apic`].
    pub(super) fn give(&mut self, v: Current<'_>, lapic: &mut Lapic) {
        let space = match lapic.mode() {
            ApicMode::XApic if lapic.is_in_place() => ApicSpace::Memory,
            ApicMode::X2Apic => ApicSpace::Msrs,
            ApicMode::XApic | ApicMode::Disabled => ApicSpace::None,
        };
        if self.space != Some(space) {
            self.follow_mode(v, space);
        }
        if self.delivery() == InterruptDelivery::Virtual {
            let level = lapic.level_triggered();
            if level != self.eoi_exits {
                self.eoi_exits = level;
                write_eoi_exits(v, &level);
                lapic.show_level_triggered(self.page());
            }
            let status = lapic.hand_over(self.page(), self.status);
            if status != self.status {
                self.status = status;
                v.write(Field16::GUEST_INTERRUPT_STATUS, status.into_bits());
            }
        } else if self.words.keeps_task_priority() {
            self.page().set_task_priority(lapic.tpr());
            // More than the priority itself is refused, and would be no wait.
            let threshold = lapic.cr8_threshold().min(lapic.cr8());
            if threshold != self.threshold {
                self.threshold = threshold;
                v.write(Field32::TPR_THRESHOLD, threshold.into());
            }
        }
    }

    /// See [`vmm::backend::Backend::take_apic`].
    pub(super) fn take(&mut self, v: Current<'_>, lapic: &mut Lapic) {
        if self.delivery() == InterruptDelivery::Virtual {
            self.status = InterruptStatus::from_bits(v.read(Field16::GUEST_INTERRUPT_STATUS));
            lapic.take_back(self.page(), self.status);
        } else if self.words.keeps_task_priority() {
            lapic.set_tpr(self.page().task_priority());
        }
    }

    /// The vector that the CPU delivered last, where it does so by itself.
    pub(super) fn servicing(&self, v: Current<'_>) -> Option<Vector> {
        let virtualized = self.delivery() == InterruptDelivery::Virtual;
        let status = virtualized.then(|| v.read(Field16::GUEST_INTERRUPT_STATUS))?;
        let vector = InterruptStatus::from_bits(status).servicing();
        (vector != 0).then_some(vector)
    }

    /// The register at `offset` of the page, as the guest wrote it.
    pub(super) fn register(&self, offset: u16) -> u32 {
        let [register, _] = (offset >> 4).to_le_bytes();
        self.page().read(devices::lapic::Reg(register))
    }
}

fn write_eoi_exits(v: Current<'_>, vectors: &VectorSet) {
    let VectorSet(words) = *vectors;
    let fields = [Field64::EOI_EXIT0, Field64::EOI_EXIT1, Field64::EOI_EXIT2, Field64::EOI_EXIT3];
    for (field, word) in fields.into_iter().zip(words) {
        v.write(field, word);
    }
}

impl Drop for ApicHardware {
    fn drop(&mut self) {
        mm::free_page(self.page);
    }
}
