//! Hot accesses to ports that guests use often: reads that change nothing, and writes of
//! a polling console. All others are declined.

use crate::board::Board;
use crate::ports::{Target, lookup};
use crate::serial::Serial;
use spin::MutexGuard;

impl Board {
    /// IN of one byte from `port`, if that changes nothing. The value is what
    /// [`port_read`](Self::port_read) would give.
    #[inline]
    #[must_use]
    pub fn hot_read(&self, port: u16) -> Option<u8> {
        let (target, offset) = lookup(port);
        match target {
            Target::Pic => self.irq.try_lock()?.pic().hot_read(offset),
            Target::Uart => self.serial.try_lock()?.uart.hot_read(offset),
            _ => None,
        }
    }

    /// OUT of one byte to `port`, if its only effect will be a byte to be fetched from
    /// the console.
    #[inline]
    #[must_use]
    pub fn hot_write(&self, port: u16) -> Option<HotWrite<'_>> {
        match lookup(port) {
            (Target::Uart, 0) => {
                let serial = self.serial.try_lock()?;
                (serial.sent.has_room() && serial.uart.sends_at_once())
                    .then_some(HotWrite { serial })
            }
            _ => None,
        }
    }
}

/// A write to a port that has been checked and only has to be made.
#[derive(Debug)]
pub struct HotWrite<'a> {
    serial: MutexGuard<'a, Serial>,
}

impl HotWrite<'_> {
    /// Makes the write.
    #[inline(always)]
    pub fn write(&mut self, value: u8) {
        let Serial { uart, sent } = &mut *self.serial;
        sent.push(uart.send_at_once(value));
    }
}
