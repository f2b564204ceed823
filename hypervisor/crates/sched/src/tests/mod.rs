//! The policy on simulated machines.

mod props;
mod sim;
mod storms;
mod units;

use crate::{EntityId, GuestId, Scheduler};

impl Scheduler {
    fn has_guest(&self, id: GuestId) -> bool {
        self.guests.resolve(id.0).is_some()
    }

    fn has(&self, id: EntityId) -> bool {
        self.entities.resolve(id.0).is_some()
    }
}
