//! Account of a guest's time.

use core::fmt;

/// Account of a guest's time since its first instruction, in ticks or in nanoseconds: the
/// time of its vCPUs on CPUs, and what else was done for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// In the guest.
    pub guest: u64,
    /// In exits that the hot handler served: their count times the benchmark's figures.
    pub hot: u64,
    /// In exits that the general code served.
    pub exits: u64,
    /// To give its vCPUs a CPU and to take it away.
    pub switches: u64,
    /// In services: memory that was zeroed ahead for it.
    pub services: u64,
}

impl Account {
    /// The sum of the two accounts.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            guest: self.guest.saturating_add(other.guest),
            hot: self.hot.saturating_add(other.hot),
            exits: self.exits.saturating_add(other.exits),
            switches: self.switches.saturating_add(other.switches),
            services: self.services.saturating_add(other.services),
        }
    }

    /// All the time of the account.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.guest.saturating_add(self.outside())
    }

    /// All the time but the guest's own.
    #[must_use]
    pub fn outside(&self) -> u64 {
        let exits = self.hot.saturating_add(self.exits);
        exits.saturating_add(self.switches).saturating_add(self.services)
    }
}

/// The shares, to a hundredth of a percent.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        for (name, part) in [
            ("guest", self.guest),
            (", hot exits about", self.hot),
            (", other exits", self.exits),
            (", switches", self.switches),
            (", services", self.services),
        ] {
            let parts = u128::from(part) * 10_000 + u128::from(total) / 2;
            let parts = parts.checked_div(total.into()).unwrap_or(0);
            write!(f, "{name} {}.{:02} %", parts / 100, parts % 100)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn shares_of_an_account() {
        let one =
            Account { guest: 9_794_000, hot: 106_000, switches: 25_000, ..Account::default() };
        let account = one.plus(Account { services: 75_000, ..Account::default() });
        assert_eq!(account.total(), 10_000_000);
        assert_eq!(account.outside(), 206_000);
        assert_eq!(
            account.to_string(),
            "guest 97.94 %, hot exits about 1.06 %, other exits 0.00 %, switches 0.25 %, \
             services 0.75 %"
        );
        assert!(Account::default().to_string().starts_with("guest 0.00 %, "));
    }
}
