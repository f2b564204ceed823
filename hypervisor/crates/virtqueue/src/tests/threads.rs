//! Both halves at once, each asleep where it has asked to be told.

use super::{Words, layout};
use crate::{Chain, DeviceQueue, DriverQueue, Segment};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// A notification that is remembered until somebody waits for it.
#[derive(Default)]
struct Bell(Mutex<u64>, Condvar);

impl Bell {
    fn ring(&self) {
        *self.0.lock().unwrap() += 1;
        self.1.notify_one();
    }

    /// Waits for the bell; how often it was rung.
    fn wait(&self) -> u64 {
        let rung = self.0.lock().unwrap();
        let limit = Duration::from_secs(20);
        let (mut rung, late) = self.1.wait_timeout_while(rung, limit, |rung| *rung == 0).unwrap();
        assert!(!late.timed_out(), "nobody rings");
        core::mem::take(&mut *rung)
    }
}

/// Chains go through in order, none is lost, and no half sleeps for ever.
fn go_through(size: u16, event_index: bool, total: u32, batch: u32) {
    let (layout, bytes) = layout(size);
    let memory = Arc::new(Words::new(bytes));
    let (kick, interrupt) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    let device = {
        let (memory, kick, interrupt) = (memory.clone(), kick.clone(), interrupt.clone());
        thread::spawn(move || {
            let mut device = DeviceQueue::new(layout, event_index, false);
            let mut chain = Chain::new(size);
            let (mut next, mut kicks) = (0u32, 0u64);
            while next < total {
                if !device.want_notifications(&*memory).unwrap() {
                    kicks += kick.wait();
                }
                device.stop_notifications(&*memory).unwrap();
                while device.take(&*memory, &mut chain).unwrap() {
                    let segment = Segment { at: u64::from(next) + 1, len: next + 1 };
                    assert_eq!((chain.readable(), chain.writable()), (&[][..], &[segment][..]));
                    device.give_back(&*memory, chain.head(), next % 7).unwrap();
                    next += 1;
                    if device.publish(&*memory).unwrap() {
                        interrupt.ring();
                    }
                }
            }
            kicks
        })
    };
    let mut driver = DriverQueue::new(layout, event_index);
    let (mut next, mut done, mut notified) = (0u32, 0u32, 0u64);
    while done < total {
        for _ in 0..batch {
            if next == total {
                break;
            }
            let segment = Segment { at: u64::from(next) + 1, len: next + 1 };
            if driver.add(&*memory, &[], &[segment]).is_err() {
                break;
            }
            next += 1;
        }
        if driver.publish(&*memory).unwrap() {
            notified += 1;
            kick.ring();
        }
        if !driver.want_interrupts(&*memory).unwrap() && (next == total || driver.free() == 0) {
            interrupt.wait();
        }
        driver.stop_interrupts(&*memory).unwrap();
        while let Some(back) = driver.take_back(&*memory).unwrap() {
            assert_eq!(back.written, done % 7);
            done += 1;
        }
    }
    let kicks = device.join().unwrap();
    assert!(kicks <= notified);
}

#[test]
fn nothing_is_lost_and_nobody_sleeps_for_ever() {
    for size in [1, 2, 16, 256] {
        for event_index in [false, true] {
            for batch in [1, 5, 300] {
                go_through(size, event_index, 5_000, batch);
            }
        }
    }
}
