//! One definition for each closed set of words: the Rust enum, its text and its number on the wire.

/// Defines an enum whose values have one text form and one wire number each.
///
/// Gives `ALL`, `as_str`, `number`, `Display`, `FromStr` with a helpful `InvalidX`, and the conversions from and to
/// the generated enum's `i32`.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident is $what:literal, or $invalid:ident {
            $( $(#[$vmeta:meta])* $variant:ident = $number:literal $text:literal $(| $alias:literal)* ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $( $(#[$vmeta])* $variant = $number, )+
        }

        impl $name {
            /// Every value, in the order of the contract.
            pub const ALL: &'static [$name] = &[$( $name::$variant, )+];

            /// The word in answers, flags and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $( $name::$variant => $text, )+ }
            }

            /// The number on the wire and in storage.
            pub const fn number(self) -> i32 {
                self as i32
            }

            /// The value with this number, if there is one.
            pub const fn from_number(number: i32) -> Option<$name> {
                match number { $( $number => Some($name::$variant), )+ _ => None }
            }

            /// The value of a wire field; UNSPECIFIED and unknown numbers are refused.
            pub fn from_wire(field: &'static str, number: i32) -> Result<$name, $crate::InvalidMessage> {
                $name::from_number(number).ok_or_else(|| {
                    $crate::InvalidMessage::new(field, format!(concat!("{} is no ", $what), number))
                })
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        #[doc = concat!("A text that is no ", $what, ".")]
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[error("`{0}` is no {what}; one of {all}", what = $what, all = [$($text),+].join(", "))]
        pub struct $invalid(pub String);

        impl std::str::FromStr for $name {
            type Err = $invalid;

            fn from_str(text: &str) -> Result<$name, $invalid> {
                match text.to_ascii_lowercase().as_str() {
                    $( $text $(| $alias)* => Ok($name::$variant), )+
                    _ => Err($invalid(text.to_owned())),
                }
            }
        }
    };
}

pub(crate) use words;
