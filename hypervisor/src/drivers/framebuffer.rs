//! The screen: text for the operator where there is no serial port. Drawing takes
//! long; once guests run, what is to be drawn waits for the operator's context.

use crate::cpu::asm;
use alloc::string::String;
use bootloader_api::info::{FrameBuffer, FrameBufferInfo, PixelFormat};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use spin::Mutex;

const HEIGHT: RasterHeight = RasterHeight::Size16;
const WEIGHT: FontWeight = FontWeight::Regular;
const LINE: usize = 18;

/// Bytes that can wait to be drawn: a crash's dump, and more.
const QUEUE: usize = 16 << 10;

struct Screen {
    pixels: &'static mut [u8],
    info: FrameBufferInfo,
    x: usize,
    y: usize,
    /// Text that waits, from `next` on.
    queue: String,
    next: usize,
    /// Ends of lines in that.
    ends: usize,
}

static SCREEN: Mutex<Option<Screen>> = Mutex::new(None);

impl Screen {
    /// Pixels are never read: that is slow on real machines. At the bottom,
    /// text goes on at the top, one cleared line ahead.
    fn new_line(&mut self) {
        self.x = 0;
        self.y += LINE;
        if self.y + LINE > self.info.height {
            self.y = 0;
            self.clear_line(0);
        }
        // The line itself was the one ahead.
        if self.y + 2 * LINE <= self.info.height {
            self.clear_line(self.y + LINE);
        }
    }

    fn clear_line(&mut self, top: usize) {
        let bytes = self.info.stride * self.info.bytes_per_pixel;
        let start = top * bytes;
        if let Some(line) = self.pixels.get_mut(start..start + LINE * bytes) {
            line.fill(0);
        }
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

    /// Leaves out lines that the last ones which wait would overwrite.
    fn skip(&mut self) {
        let rows = self.info.height / LINE;
        let from = self.next;
        while self.ends > rows
            && let Some(end) = self.queue.get(self.next..).and_then(|rest| rest.find('\n'))
        {
            self.next += end + 1;
            self.ends -= 1;
        }
        if self.next != from && self.x != 0 {
            self.new_line();
        }
    }
}

/// Takes the screen.
pub fn init(framebuffer: FrameBuffer) {
    let info = framebuffer.info();
    let pixels = framebuffer.into_buffer();
    pixels.fill(0);
    *SCREEN.lock() =
        Some(Screen { pixels, info, x: 0, y: 0, queue: String::new(), next: 0, ends: 0 });
}

/// Has text drawn later, if there is a screen. What is too much is left out: the
/// serial port has it.
pub fn queue(text: &str) {
    if let Some(screen) = SCREEN.lock().as_mut()
        && screen.queue.len() + text.len() <= QUEUE
    {
        screen.queue.push_str(text);
        screen.ends += text.matches('\n').count();
    }
}

/// Draws what waits, until the tick `until`. Whether anything is left.
pub fn draw(until: u64) -> bool {
    let mut guard = SCREEN.lock();
    let Some(screen) = guard.as_mut() else { return false };
    screen.skip();
    while let Some(character) = screen.queue.get(screen.next..).and_then(|s| s.chars().next()) {
        if asm::rdtsc() >= until {
            return true;
        }
        screen.next += character.len_utf8();
        screen.ends -= usize::from(character == '\n');
        screen.put(character);
    }
    screen.queue.clear();
    screen.next = 0;
    false
}

/// Writes text, if there is a screen.
pub fn write(text: &str) {
    if let Some(screen) = SCREEN.lock().as_mut() {
        text.chars().for_each(|c| screen.put(c));
    }
}

/// Whatever the state of the lock, write this: for a panic.
pub fn write_in_panic(text: &str) {
    if SCREEN.is_locked() {
        // SAFETY: the CPU that held the lock is this one and will never go on.
        unsafe { SCREEN.force_unlock() };
    }
    write(text);
}
