//! Why a guest could not be loaded.

use alloc::string::String;
use core::fmt;
use memory::MemoryError;

/// The format in which something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Linux kernel's setup header.
    Linux,
    /// An ELF image.
    Elf,
    /// An ELF note of PVH.
    Pvh,
    /// A Multiboot 1 header.
    Multiboot,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux => "Linux setup header",
            Self::Elf => "ELF image",
            Self::Pvh => "PVH note",
            Self::Multiboot => "Multiboot header",
        })
    }
}

/// A kernel that can't be started, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// There is nothing in the file.
    #[error("kernel: the file is empty")]
    Empty,
    /// No loader knows this image.
    #[error(
        "kernel: this is no bzImage, and no image with a PVH note or a Multiboot header (it \
         begins with {first:02x?}{hint})"
    )]
    Unrecognised {
        /// The image's first bytes.
        first: [u8; 4],
        /// Guess at the kind of the image, in words.
        hint: &'static str,
    },
    /// An image that is made for another machine, or for none.
    #[error("kernel: this is {what}; {cure}")]
    Foreign {
        /// Kind of the image, in words.
        what: &'static str,
        /// Cure: what to do instead.
        cure: &'static str,
    },
    /// A program in the form of a Linux kernel that calls a BIOS.
    #[error(
        "kernel: this is a real-mode program with Linux's setup header{version}, as memdisk, iPXE \
         (ipxe.lkrn) and GRUB's lnxboot.img are: it calls a BIOS, and a guest has none; boot the \
         kernel itself"
    )]
    RealMode {
        /// Words about the version that its header names; empty if it names none.
        version: String,
    },
    /// An ELF image that does not say how to start it.
    #[error(
        "kernel: this ELF image has neither a PVH note (name \"Xen\", type 18) nor a Multiboot \
         header in its first 8 KiB"
    )]
    ElfWithoutProtocol,
    /// The image ends too early.
    #[error("kernel: damaged: {what} ends at {wanted:#x}, but the image has {got:#x} bytes")]
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// End of that part, in bytes from the image's start.
        wanted: u64,
        /// The image's size in bytes.
        got: u64,
    },
    /// A field has a value that it can't have.
    #[error("kernel: damaged: {format}, field {field} at {offset:#x} is {value:#x}; {wanted}")]
    Field {
        /// The structure that has the field.
        format: Format,
        /// Name of the field in the format's specification.
        field: &'static str,
        /// Offset of the field, in bytes from the image's start.
        offset: u64,
        /// Value of the field.
        value: u64,
        /// The values that it may have, in words.
        wanted: &'static str,
    },
    /// The image is sound, but asks for something that this machine does not have.
    #[error(
        "kernel: not supported: {format}, field {field} at {offset:#x} is {value:#x}; {wanted}"
    )]
    Unsupported {
        /// The structure that has the field.
        format: Format,
        /// Name of the field in the format's specification.
        field: &'static str,
        /// Offset of the field, in bytes from the image's start.
        offset: u64,
        /// Value of the field.
        value: u64,
        /// The values that are supported, in words.
        wanted: &'static str,
    },
    /// The checksum that Linux's build appends does not hold.
    #[error(
        "kernel: damaged: the CRC-32 of the bzImage's first {size:#x} bytes leaves {got:#010x}, \
         wanted 0xffffffff; fetch the kernel again"
    )]
    Checksum {
        /// Number of bytes that the checksum covers.
        size: u64,
        /// The remainder of the checksum.
        got: u32,
    },
    /// An ELF segment is impossible.
    #[error(
        "kernel: segment {index}, which is to be loaded at {start:#x} to {end:#x}, {fault}; the \
         guest has {memory:#x} bytes of memory"
    )]
    Segment {
        /// Place of the segment among the program headers, from 0.
        index: usize,
        /// First address of the segment.
        start: u64,
        /// Address after the segment's last byte; may be cut to 64 bits.
        end: u64,
        /// The fault.
        fault: SegmentFault,
        /// The guest's memory in bytes.
        memory: u64,
    },
    /// The entry point is outside what was loaded.
    #[error("kernel: damaged: the entry point {entry:#x} is in no loaded segment")]
    Entry {
        /// The entry point.
        entry: u64,
    },
    /// The guest has too little memory for the kernel.
    #[error(
        "kernel: too little memory: with its files it needs {start:#x} to {end:#x}, and the \
         guest's RAM below 4 GiB ends at {ram_end:#x}; give the guest at least {mib} MiB",
        mib = .end.div_ceil(1 << 20)
    )]
    TooLittleMemory {
        /// First address of the kernel.
        start: u64,
        /// End of the memory that it needs at once, its initial ramdisk or modules behind it.
        end: u64,
        /// End of the guest's RAM.
        ram_end: u64,
    },
    /// Something finds no place in the guest's memory, however much that is.
    #[error(
        "{what} of {size:#x} bytes does not fit between {from:#x} and {to:#x}, beside what is \
         there already, and more memory is no help; make it smaller"
    )]
    NoRoom {
        /// Thing that finds no place, in words.
        what: &'static str,
        /// Size of it in bytes.
        size: u64,
        /// The lowest address allowed.
        from: u64,
        /// The address after the highest allowed.
        to: u64,
    },
    /// The command line is too long for the kernel.
    #[error("the command line has {got} bytes, the kernel takes at most {max}; shorten it")]
    CommandLine {
        /// Length of the command line in bytes.
        got: u64,
        /// The most bytes that the kernel takes.
        max: u64,
    },
    /// Linux takes an initial ramdisk, not modules.
    #[error("a Linux kernel takes no modules ({0} given); use \"initrd\"")]
    Modules(usize),
    /// The guest's memory could not be written.
    #[error("loading: {0}")]
    Memory(#[from] MemoryError),
}

/// Faults of an ELF segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentFault {
    /// More bytes in the file than in memory.
    #[error("is damaged: p_filesz is greater than p_memsz")]
    FileLarger,
    /// The contents reach beyond the image.
    #[error("is damaged: its contents reach beyond the image's end")]
    Truncated,
    /// The end does not fit into the address space.
    #[error("is damaged: its end overflows")]
    Overflow,
    /// The segment is not in RAM that a kernel may have.
    #[error("is outside RAM, or overlaps the first page or the reserved ranges below 1 MiB")]
    NotRam,
    /// Another segment is there.
    #[error("overlaps a segment before it")]
    Overlap,
}

impl LoadError {
    /// An image that nothing knows.
    pub(crate) fn unrecognised(image: &[u8]) -> Self {
        if image.is_empty() {
            return Self::Empty;
        }
        let mut first = [0; 4];
        super::bytes::put(&mut first, 0, image);
        let hint = match first {
            [0x1f, 0x8b, ..] => ": gzip; unpack it first",
            [0xfd, b'7', b'z', b'X'] => ": xz; unpack it first",
            [0x28, 0xb5, 0x2f, 0xfd] => ": zstd; unpack it first",
            [b'M', b'Z', ..] => ": a PE program that is no Linux kernel",
            [b'0', b'7', b'0', b'7'] => ": a cpio archive, perhaps an initrd",
            _ => "",
        };
        Self::Unrecognised { first, hint }
    }
}
