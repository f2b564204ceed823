//! A guest that is paused and asks for it goes on as a fresh one ([`exchange`]). For tests.

use super::Operator;
use super::lives::Stage;
use crate::cpu::asm;
use crate::journal;
use crate::machine::guest::{Start, exchange};
use crate::machine::{World, send};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use sched::{EntityId, Kind};
use vmm::lifecycle::State;

/// How far it has come, since the guest was paused.
#[derive(Default)]
pub(super) enum Exchange {
    /// Not begun.
    #[default]
    Nothing,
    /// The fresh guest is being made.
    Begun(Arc<dyn Start>, EntityId),
    /// Over, well or not.
    Over,
}

impl Operator {
    /// Begins it, or ends it, for the guest at `at`.
    pub(super) fn exchange(&mut self, world: &'static World, at: usize) {
        let Some(record) = self.records.get_mut(at) else { return };
        if record.life.state() != State::Paused || !record.clock_stands {
            record.exchange = Exchange::Nothing;
            return;
        }
        let step = match &record.exchange {
            Exchange::Nothing if exchange::is_requested(&record.settings) => {
                self.begin_exchange(world, at)
            }
            Exchange::Begun(starter, entity) => {
                let (starter, entity) = (Arc::clone(starter), *entity);
                self.end_exchange(world, at, &*starter, entity)
            }
            Exchange::Nothing | Exchange::Over => return,
        };
        if let Err(why) = step {
            log::error!("the guest can't be exchanged: {why}");
            if let Some(record) = self.records.get_mut(at) {
                record.exchange = Exchange::Over;
            }
        }
    }

    fn begin_exchange(&mut self, world: &'static World, at: usize) -> Result<(), String> {
        let Some(record) = self.records.get_mut(at) else { return Ok(()) };
        let Some(guest) = record.guest().map(Arc::clone) else { return Ok(()) };
        let saved = exchange::save(&guest)?;
        journal::stage(
            "guest",
            format_args!("\"{}\" is saved: {} bytes", guest.vm.name, saved.len()),
        );
        self.machine.unschedule(&*guest);
        let mut scheduler = world.scheduler.lock();
        let added = scheduler.add(guest.id, Kind::Service, guest.settings.cpus(), asm::rdtsc());
        drop(scheduler);
        let entity = added.map_err(|error| error.to_string())?;
        let starter = self.machine.exchange(entity, &*guest, saved);
        record.exchange = Exchange::Begun(starter, entity);
        Ok(())
    }

    fn end_exchange(
        &mut self,
        world: &'static World,
        at: usize,
        starter: &dyn Start,
        entity: EntityId,
    ) -> Result<(), String> {
        let Some(result) = starter.result() else { return Ok(()) };
        self.start_over(world, at, entity);
        let guest = result.map_err(|error| error.to_string())?;
        guest.schedule(world).map_err(|error| error.to_string())?;
        // The vCPUs of the one before are gone, and these are to run when the operator says so.
        if let Ok(kicks) = world.scheduler.lock().pause(guest.id, asm::rdtsc()) {
            send(kicks);
        }
        guest.vm.board.go_on();
        starter.admit();
        let Some(record) = self.records.get_mut(at) else { return Ok(()) };
        journal::stage("guest", format_args!("\"{}\" is restored", guest.vm.name));
        record.stage = Stage::There(guest);
        record.exchange = Exchange::Over;
        Ok(())
    }
}
