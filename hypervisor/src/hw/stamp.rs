//! Stamps in the entry assembly of the measured image (feature `stamp-exits`): see
//! [`vmm::stamps`]. In other images they are empty.

#[cfg(feature = "stamp-exits")]
mod layout {
    use core::mem::offset_of;
    use vmm::backend::HotState;
    use vmm::stamps::Stamps;

    const _: () = assert!(offset_of!(HotState, stamps) == 128);
    const _: () = assert!(offset_of!(Stamps, mark) == 0);
    const _: () = assert!(offset_of!(Stamps, guest) == 8);
    const _: () = assert!(offset_of!(Stamps, hot) == 16);
    const _: () = assert!(offset_of!(Stamps, cold) == 24);
    const _: () = assert!(offset_of!(Stamps, exits) == 32);
}

/// Adds the ticks since the last stamp to the place at the offset from the vCPU's core, which
/// RDI points to. Changes RAX, RCX, RDX and the flags.
#[cfg(feature = "stamp-exits")]
macro_rules! stamp {
    (guest) => {
        concat!(stamp!(136), "add qword ptr [rdi + 160], 1\n")
    };
    (hot) => {
        stamp!(144)
    };
    (cold) => {
        stamp!(152)
    };
    ($offset:literal) => {
        concat!(
            "rdtsc\n",
            "shl rdx, 32\n",
            "or rdx, rax\n",
            "mov rcx, rdx\n",
            "sub rcx, [rdi + 128]\n",
            "mov [rdi + 128], rdx\n",
            "add [rdi + ",
            $offset,
            "], rcx\n",
        )
    };
}

#[cfg(not(feature = "stamp-exits"))]
macro_rules! stamp {
    ($place:ident) => {
        ""
    };
}
