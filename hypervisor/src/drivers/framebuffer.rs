//! The screen: text for the operator where there is no serial port. Drawing takes
//! long; once guests run, what is to be drawn waits for CPUs that have nothing to
//! do, and for a step of the operator's service now and then.

use crate::cpu::asm;
use bootloader_api::info::{FrameBuffer, FrameBufferInfo, PixelFormat};
use control::Backlog;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use spin::{Mutex, MutexGuard};

const HEIGHT: RasterHeight = RasterHeight::Size16;
const WEIGHT: FontWeight = FontWeight::Regular;
const LINE: usize = 18;

struct Screen {
    pixels: &'static mut [u8],
    info: FrameBufferInfo,
    x: usize,
    y: usize,
    /// Rows of pixels that are still to be cleared before more is drawn.
    dirty: Range<usize>,
    /// Text that waits to be drawn.
    backlog: Backlog,
}

static SCREEN: Mutex<Option<Screen>> = Mutex::new(None);
/// Something waits to be drawn.
static WAITS: AtomicBool = AtomicBool::new(false);

impl Screen {
    /// Pixels are never read: that is slow on real machines. At the bottom,
    /// text goes on at the top, one cleared line ahead.
    fn new_line(&mut self) {
        while self.clear_row() {}
        self.x = 0;
        self.y += LINE;
        if self.y + LINE > self.info.height {
            self.y = 0;
            self.dirty = 0..2 * LINE;
        } else {
            // The line itself was the one ahead.
            self.dirty = self.y + LINE..self.y + 2 * LINE;
        }
    }

    /// Clears a row of pixels, if there is one to be cleared.
    fn clear_row(&mut self) -> bool {
        let Some(row) = self.dirty.next() else { return false };
        let bytes = self.info.stride * self.info.bytes_per_pixel;
        if let Some(row) = self.pixels.get_mut(row * bytes..(row + 1) * bytes) {
            row.fill(0);
        }
        true
    }

    fn put(&mut self, character: char) {
        let width = get_raster_width(WEIGHT, HEIGHT);
        match character {
            '\n' => return self.new_line(),
            '\r' => return,
            _ => {}
        }
        if self.x + width > self.info.width {
            self.new_line();
            while self.clear_row() {}
        }
        let raster =
            get_raster(character, WEIGHT, HEIGHT).or_else(|| get_raster('?', WEIGHT, HEIGHT));
        let Some(raster) = raster else { return };
        let bytes = self.info.bytes_per_pixel;
        for (row, line) in raster.raster().iter().enumerate() {
            let start = ((self.y + row) * self.info.stride + self.x) * bytes;
            let Some(pixels) = self.pixels.get_mut(start..start + line.len() * bytes) else {
                break;
            };
            // Grey is the same in either order of colours.
            match (bytes, self.info.pixel_format) {
                (4, PixelFormat::Rgb | PixelFormat::Bgr) => {
                    for (pixel, &grey) in pixels.as_chunks_mut().0.iter_mut().zip(*line) {
                        *pixel = [grey, grey, grey, 0];
                    }
                }
                (3, _) => {
                    for (pixel, &grey) in pixels.as_chunks_mut().0.iter_mut().zip(*line) {
                        *pixel = [grey; 3];
                    }
                }
                _ => {
                    for (pixel, &grey) in pixels.chunks_exact_mut(bytes).zip(*line) {
                        pixel.fill(grey);
                    }
                }
            }
        }
        self.x += width;
    }

    /// Lines that it shows.
    fn rows(&self) -> usize {
        self.info.height / LINE
    }
}

/// Takes the screen.
pub fn init(framebuffer: FrameBuffer) {
    let info = framebuffer.info();
    let pixels = framebuffer.into_buffer();
    pixels.fill(0);
    *SCREEN.lock() =
        Some(Screen { pixels, info, x: 0, y: 0, dirty: 0..0, backlog: Backlog::new() });
}

/// From now on text is [queued](queue).
pub fn prepare() {
    let prepared = SCREEN.lock().as_mut().map_or(Ok(()), |screen| screen.backlog.prepare());
    // The lock is left by now: this is shown on the screen.
    if prepared.is_err() {
        log::warn!("no memory for what is to be shown on the screen: it stays as it is");
    }
}

/// Has text drawn later, if there is a screen. Text that is too much is left out: the
/// serial port has it.
pub fn queue(text: &str) {
    if let Some(screen) = SCREEN.lock().as_mut() {
        screen.backlog.push(text, screen.rows());
        WAITS.store(!screen.backlog.is_empty(), Ordering::Relaxed);
    }
}

/// Draws what waits, until the tick `until`. Whether it has drawn anything: not while
/// another CPU does.
pub fn draw(until: u64) -> bool {
    WAITS.load(Ordering::Relaxed) && SCREEN.try_lock().is_some_and(|guard| draw_on(guard, until))
}

/// Draws all that waits.
pub fn draw_all() {
    draw_on(SCREEN.lock(), u64::MAX);
}

fn draw_on(mut guard: MutexGuard<'_, Option<Screen>>, until: u64) -> bool {
    let Some(screen) = guard.as_mut() else { return false };
    if screen.backlog.skip(screen.rows()) && screen.x != 0 {
        screen.new_line();
    }
    while asm::rdtsc() < until {
        if screen.clear_row() {
            continue;
        }
        match screen.backlog.pop() {
            Some(character) => screen.put(character),
            None => {
                WAITS.store(false, Ordering::Relaxed);
                break;
            }
        }
    }
    true
}

/// Writes text, if there is a screen.
pub fn write(text: &str) {
    if let Some(screen) = SCREEN.lock().as_mut() {
        for character in text.chars() {
            while screen.clear_row() {}
            screen.put(character);
        }
    }
}

/// Whatever the state of the lock, write this: for a panic.
pub fn write_in_panic(text: &str) {
    super::wait_in_panic(|| SCREEN.is_locked());
    if SCREEN.is_locked() {
        // SAFETY: the CPU that holds the lock is this one, or was told to stop and had
        // time to: it will not go on.
        unsafe { SCREEN.force_unlock() };
    }
    write(text);
}
