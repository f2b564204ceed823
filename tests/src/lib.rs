//! Boots the image under emulators and checks what guests do.
