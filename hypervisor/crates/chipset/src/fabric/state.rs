//! The interrupt controllers, and what is on its way from them to vCPUs, saved and restored.

use super::{Fabric, Posted, Requests};
use crate::saved::{refused, take};
use config::layout::PCI_PINS;
use core::sync::atomic::Ordering;
use devices::lapic::VectorSet;
use devices::{Device, RestoreError};
use serde::{Deserialize, Serialize};
use state::{Saved, Sections, StateError, Writer};

/// The saved state of a fabric, but for its chips and mailboxes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FabricState {
    /// For each pin of PCI's: the slots whose devices assert it.
    asserting: [u32; PCI_PINS as usize],
    /// How often lowest priority has been arbitrated.
    turn: u32,
}

impl Saved for FabricState {
    const NAME: &'static str = "fabric";
    const VERSION: u16 = 1;
}

/// The saved state of a mailbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MailboxState {
    /// Vectors that wait.
    pub(super) pending: VectorSet,
    /// Those of them that are level-triggered.
    pub(super) level: VectorSet,
    /// Requests of the guest's machine.
    pub(super) requests: u32,
    /// The page of a start-up that is requested.
    pub(super) start_up: Option<u8>,
    /// TSC_ADJUST of the vCPU.
    pub(super) tsc_adjust: u64,
}

impl Saved for MailboxState {
    const NAME: &'static str = "mailbox";
    const VERSION: u16 = 1;
}

/// Requests that the guest's machine has made, and not the host that runs it.
const OF_THE_MACHINE: Requests = Requests::INTERRUPT
    .union(Requests::NMI)
    .union(Requests::INIT)
    .union(Requests::FLUSH)
    .union(Requests::PIC)
    .union(Requests::UNHALT)
    .union(Requests::CLOCK);

impl Posted {
    pub(super) fn save(&self) -> MailboxState {
        let ([pending, level], requests, start_up) = self.peek();
        MailboxState {
            pending: VectorSet(pending),
            level: VectorSet(level),
            requests: (requests & OF_THE_MACHINE).bits(),
            start_up,
            tsc_adjust: self.tsc_adjust(),
        }
    }

    pub(super) fn restore(&self, state: &MailboxState) -> Result<(), RestoreError> {
        let requests = Requests::from_bits(state.requests)
            .filter(|requests| OF_THE_MACHINE.contains(*requests))
            .ok_or(RestoreError("mailbox: unknown requests"))?;
        self.put_back([state.pending.0, state.level.0], requests, state.start_up);
        self.set_tsc_adjust(state.tsc_adjust);
        Ok(())
    }
}

impl Fabric {
    pub(crate) fn save(&self, writer: &mut Writer) {
        let chips = self.chips.lock();
        writer.put(0, &chips.pic.save());
        writer.put(0, &chips.ioapic.save());
        writer.put(0, &FabricState { asserting: chips.asserting, turn: self.routes.turns() });
        drop(chips);
        for (index, mailbox) in (0..).zip(&self.mailboxes) {
            writer.put(index, &mailbox.save());
        }
    }

    /// Restores all but who answers to which destination, which the vCPUs know. Nobody is kicked:
    /// each vCPU looks into its mailbox before it runs.
    pub(crate) fn restore(&self, sections: &mut Sections<'_>) -> Result<(), StateError> {
        let mut chips = self.chips.lock();
        take(sections, &mut chips.pic)?;
        take(sections, &mut chips.ioapic)?;
        let FabricState { asserting, turn } = sections.take(0)?;
        chips.asserting = asserting;
        self.routes.set_turns(turn);
        self.pic.store(chips.pic.output(), Ordering::SeqCst);
        drop(chips);
        for (index, mailbox) in (0..).zip(&self.mailboxes) {
            let state = sections.take(index)?;
            mailbox.restore(&state).map_err(refused::<MailboxState>(index))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::lapic::Trigger;

    const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

    #[test]
    fn the_states_are_laid_out_as_they_were() {
        state::golden::check(FOLDER, || FabricState {
            asserting: [0, 8, 0, 1, 2, 3, 4, 5],
            turn: 7,
        });
        state::golden::check(FOLDER, || {
            let posted = Posted::new();
            posted.post(0x31, Trigger::Edge);
            posted.post(0xf1, Trigger::Level);
            posted.request(Requests::NMI | Requests::KICK);
            posted.request_start_up(0x9a);
            posted.set_tsc_adjust(1 << 40);
            posted.save()
        });
    }

    #[test]
    fn a_mailbox_keeps_what_is_the_machines() {
        let (posted, copy) = (Posted::new(), Posted::new());
        posted.post(0xf1, Trigger::Level);
        posted.request(Requests::UNHALT | Requests::KICK | Requests::STOP | Requests::DEADLINE);
        posted.request_start_up(0);
        copy.restore(&posted.save()).unwrap();
        let taken = copy.take_requests();
        assert_eq!(taken.start_up, Some(0));
        let machines = Requests::INTERRUPT | Requests::UNHALT | Requests::START_UP;
        assert_eq!(taken.requests, machines);
        assert_eq!(copy.take(), posted.take());
        let forged = MailboxState { requests: Requests::STOP.bits(), ..copy.save() };
        assert!(copy.restore(&forged).is_err());
    }
}
