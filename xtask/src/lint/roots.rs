//! First files of crates: they hold documentation, `mod` and `use`, and no code.

use anyhow::{Context, Result};
use syn::Item;

/// The number of items in the `lib.rs` with this text that are code.
pub(super) fn code(text: &str) -> Result<usize> {
    let syntax = syn::parse_file(text).context("cannot understand a lib.rs")?;
    let is_code = |item: &&Item| match item {
        Item::Use(_) | Item::ExternCrate(_) => false,
        Item::Mod(module) => module.content.as_ref().is_some_and(|(_, items)| !items.is_empty()),
        _ => true,
    };
    Ok(syntax.items.iter().filter(is_code).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_no_code() {
        let list =
            "//! A crate.\n#![no_std]\nextern crate alloc;\nmod a;\npub use a::B;\nmod doc {}\n";
        assert_eq!(code(list).unwrap(), 0);
        assert_eq!(code("mod a;\nconst A: u8 = 1;\nmod tests { use super::*; }").unwrap(), 2);
    }
}
