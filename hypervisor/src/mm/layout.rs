//! The hypervisor's virtual addresses. The lower half is empty; the upper half
//! is cut into slots of 512 GiB (entries of the root table), all but one of
//! them shared by every address space.
//!
//! | slot | what |
//! |------|------|
//! | 256  | [`WINDOW`]: the RAM of the guest whose address space this is |
//! | 257… | [`DIRECT`]: memory that the hypervisor owns, and no other |
//! | 320  | [`FRAME_TABLE`] |
//! | 321  | [`DEVICES`]: device registers |
//! | 322  | [`STACKS`], each between guard pages |
//! | 323  | [`HEAP`] |
//! | 324  | [`UPLOADS`]: files that came while the machine runs |
//! | 384… | the bootloader's window on all memory, gone before the first guest |
//! | 511  | the image, its first stack, the bootloader's leftovers |

use memory::Window;
use x86defs::GuestPhysAddr;

/// The RAM of this address space's guest. Its first address is told by nobody but itself, so
/// that none is computed that lies behind it.
pub const WINDOW: Window = Window::new(0xffff_8000_0000_0000);
// The memory behind it is the hypervisor's own.
const _: () = assert!(GuestPhysAddr::END <= SLOT_SIZE);
/// Host-physical address 0, where the hypervisor owns the memory.
pub const DIRECT: u64 = 0xffff_8080_0000_0000;
/// Slots that [`DIRECT`] may fill: 16 TiB.
pub const DIRECT_SLOTS: u64 = 32;
/// The frame table.
pub const FRAME_TABLE: u64 = 0xffff_a000_0000_0000;
/// Device registers.
pub const DEVICES: u64 = 0xffff_a080_0000_0000;
/// Each CPU's places for zeroing memory before it is a guest's: the last GiB of the slot.
pub const ZEROING: u64 = DEVICES + SLOT_SIZE - (1 << 30);
/// Stacks.
pub const STACKS: u64 = 0xffff_a100_0000_0000;
/// The heap.
pub const HEAP: u64 = 0xffff_a180_0000_0000;
/// Files that came while the machine runs.
pub const UPLOADS: u64 = 0xffff_a200_0000_0000;
/// The bootloader's window on all of memory.
pub const BOOT_WINDOW: u64 = 0xffff_c000_0000_0000;
/// The image.
pub const IMAGE: u64 = 0xffff_ff80_0000_0000;
/// The stack that the image starts on.
pub const BOOT_STACK: u64 = 0xffff_ffa0_0000_0000;
/// The bootloader's information.
pub const BOOT_INFO: u64 = 0xffff_ffb0_0000_0000;
/// The framebuffer.
pub const FRAMEBUFFER: u64 = 0xffff_ffc0_0000_0000;
/// The bundle.
pub const RAMDISK: u64 = 0xffff_ffd0_0000_0000;
/// Bytes in a slot of the root table.
pub const SLOT_SIZE: u64 = 1 << 39;

/// The slot of the root table that `address` lies in.
#[must_use]
pub const fn slot(address: u64) -> usize {
    (address >> 39) as usize & 511
}
