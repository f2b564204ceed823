//! Hot accesses to ports that guests use often: reads that change nothing, writes of a polling
//! console, and what nobody answers. All others are declined.

use crate::board::Board;
use crate::bus::HotPorts;
use crate::console::Serial;
use crate::ports::{Target, has_device, lookup};
use locks::MutexGuard;

impl Board {
    /// IN of one byte from `port`, if that changes nothing. The value is what
    /// [`port_read`](Self::port_read) would give.
    #[inline(always)]
    #[must_use]
    pub fn hot_read(&self, port: u16) -> Option<u8> {
        let (target, offset) = lookup(port);
        match target {
            Target::Pic => self.fabric.hot_pic_read(offset),
            Target::Uart => self.serial.try_lock()?.uart.hot_read(offset),
            _ => None,
        }
    }

    /// OUT of one byte to `port`, if its only effect will be a byte to be fetched from
    /// the console.
    #[inline(always)]
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

    /// Whether nobody answers at `port` now, by the vCPU's copy `ports`: an access of one byte
    /// reads 0xff, and a write is lost. `false` says nothing.
    #[inline]
    #[must_use]
    pub fn is_nobodys(&self, port: u16, ports: &HotPorts) -> bool {
        !has_device(port) && ports.is_below(port, self.bus.generation())
    }

    /// Renews a vCPU's copy of the places of BARs among the ports.
    #[inline]
    pub fn follow_ports(&self, ports: &mut HotPorts) {
        self.bus.follow(ports, has_device);
    }

    /// OUT of any width and value to `port`, if a doorbell is there now by the vCPU's copy
    /// `ports`: its device, by number, and the bit to [mark](Self::hot_mark).
    #[inline]
    #[must_use]
    pub fn hot_bell(&self, port: u16, ports: &HotPorts) -> Option<(u8, u64)> {
        ports.find(port, self.bus.generation())
    }

    /// Marks the doorbell of a device, by number. Whether the vCPU owes the device a wake-up from
    /// now on ([`pay`](Self::pay)).
    #[inline]
    #[must_use]
    pub fn hot_mark(&self, device: u8, bits: u64) -> bool {
        self.bus.mark(device, bits)
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
        let Serial { uart, sent, .. } = &mut *self.serial;
        sent.push(uart.send_at_once(value));
    }
}
