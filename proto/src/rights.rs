//! What an identity may do: verbs over scopes of names. Pure; nothing that is not granted is allowed.

use std::{fmt, str::FromStr};

use crate::{FileName, Scope};

/// Grants of one identity at most, and bytes of their scopes together: they stand in a request header.
pub const MAX_GRANTS: usize = 32;
/// See [`MAX_GRANTS`].
pub const MAX_SCOPES_LEN: usize = 1024;

/// What may be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// See that a name exists, locate it, fetch it, and pass it on.
    Read,
    /// Register a name first, and replace what it stands for.
    Share,
    /// Withdraw a name.
    Withdraw,
    /// Command daemons over the network.
    Admin,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Share => "share",
            Self::Withdraw => "withdraw",
            Self::Admin => "administer",
        })
    }
}

/// What is granted: some verbs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// May read.
    Reader,
    /// May read, share and withdraw.
    Publisher,
    /// May do everything.
    Admin,
}

/// The text is no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected reader, publisher or admin")]
pub struct RoleError;

impl Role {
    /// Whether it is in the role.
    pub fn allows(self, verb: Verb) -> bool {
        match verb {
            Verb::Read => true,
            Verb::Share | Verb::Withdraw => self >= Self::Publisher,
            Verb::Admin => self == Self::Admin,
        }
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        match text {
            "reader" => Ok(Self::Reader),
            "publisher" => Ok(Self::Publisher),
            "admin" => Ok(Self::Admin),
            _ => Err(RoleError),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reader => "reader",
            Self::Publisher => "publisher",
            Self::Admin => "admin",
        })
    }
}

/// A role over some names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// Over which.
    pub scope: Scope,
    /// What.
    pub role: Role,
}

/// All that one identity may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants(Vec<Grant>);

/// So many grants, or so long ones, do not fit a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("at most {MAX_GRANTS} grants with {MAX_SCOPES_LEN} bytes of names; grant a prefix that covers several of them")]
pub struct TooManyGrants;

impl Grants {
    /// Of these; what another one covers is left out.
    pub fn new(grants: impl IntoIterator<Item = Grant>) -> Result<Self, TooManyGrants> {
        let mut all: Vec<Grant> = Vec::new();
        for grant in grants {
            // Of one scope the widest role counts.
            match all.iter_mut().find(|known| known.scope == grant.scope) {
                Some(known) => known.role = known.role.max(grant.role),
                None => all.push(grant),
            }
            if all.len() > MAX_GRANTS {
                return Err(TooManyGrants);
            }
        }
        let length: usize = all.iter().map(|grant| grant.scope.to_string().len()).sum();
        if length > MAX_SCOPES_LEN {
            return Err(TooManyGrants);
        }
        all.sort();
        Ok(Self(all))
    }

    /// Each.
    pub fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.0.iter()
    }

    /// Whether anything is granted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a verb is allowed for a name.
    pub fn allow(&self, verb: Verb, name: &FileName) -> bool {
        self.0.iter().any(|grant| grant.role.allows(verb) && grant.scope.covers(name))
    }

    /// Whether a verb is allowed for every name.
    pub fn allow_all(&self, verb: Verb) -> bool {
        self.0.iter().any(|grant| grant.role.allows(verb) && grant.scope == Scope::All)
    }

    /// Whether a verb may be allowed for some name that starts with this.
    pub fn meet(&self, verb: Verb, prefix: &str) -> bool {
        self.0.iter().any(|grant| grant.role.allows(verb) && grant.scope.meets(prefix))
    }
}

/// For a person.
impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        for (nth, Grant { scope, role }) in self.0.iter().enumerate() {
            write!(f, "{}{role} of {scope}", if nth == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(all: &[(&str, Role)]) -> Grants {
        let each = all.iter().map(|(scope, role)| Grant { scope: scope.parse().unwrap(), role: *role });
        Grants::new(each).unwrap()
    }

    #[test]
    fn nothing_is_allowed_that_was_not_granted() {
        let [model, other] = ["models/a", "other"].map(|name| FileName::new(name).unwrap());
        let some = grants(&[("models/", Role::Publisher), ("other", Role::Reader)]);
        assert!(
            some.allow(Verb::Read, &model) && some.allow(Verb::Share, &model) && some.allow(Verb::Withdraw, &model)
        );
        assert!(some.allow(Verb::Read, &other) && !some.allow(Verb::Share, &other));
        assert!(!some.allow(Verb::Admin, &model) && !some.allow_all(Verb::Read));
        let none = Grants::default();
        for verb in [Verb::Read, Verb::Share, Verb::Withdraw, Verb::Admin] {
            assert!(!none.allow(verb, &model) && !none.allow_all(verb) && !none.meet(verb, ""));
        }
        assert!(grants(&[("*", Role::Admin)]).allow_all(Verb::Admin));
        assert!(!grants(&[("models/", Role::Admin)]).allow_all(Verb::Admin));
    }

    #[test]
    fn grants_are_said_in_words() {
        assert_eq!(Grants::default().to_string(), "nothing");
        let some = grants(&[("models/", Role::Reader), ("*", Role::Publisher)]);
        assert_eq!(some.to_string(), "publisher of *, reader of models/");
    }

    #[test]
    fn of_one_scope_the_widest_role_counts_and_their_number_is_bounded() {
        assert_eq!(grants(&[("a", Role::Reader), ("a", Role::Publisher)]), grants(&[("a", Role::Publisher)]));
        let many = (0..=MAX_GRANTS).map(|n| Grant { scope: format!("f{n}").parse().unwrap(), role: Role::Reader });
        assert_eq!(Grants::new(many), Err(TooManyGrants));
        let long = format!("{}/", vec!["d".repeat(100); 6].join("/"));
        let long = (0..2).map(|n| Grant { scope: format!("{n}{long}").parse().unwrap(), role: Role::Reader });
        assert_eq!(Grants::new(long), Err(TooManyGrants));
    }
}
