//! What went wrong and why, with nothing said twice: the text of many an error ends with that of its cause.

use std::error::Error;

/// The texts of an error and of its causes, outermost first. Those that the one before ends with are left out.
pub fn texts(error: &(dyn Error + 'static)) -> Vec<String> {
    let (mut texts, mut cause) = (vec![error.to_string()], error.source());
    while let Some(error) = cause {
        let text = error.to_string();
        if texts.last().is_none_or(|before| !before.ends_with(&text)) {
            texts.push(text);
        }
        cause = error.source();
    }
    texts
}

/// The same in one line, as a program that ends tells it.
pub fn told(error: &(dyn Error + 'static)) -> String {
    texts(error).join(": ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("cannot open x: {0}")]
        Naming(#[from] io::Error),
        #[error("the store failed")]
        Silent(#[source] Box<Failed>),
        #[error(transparent)]
        Transparent(Box<Failed>),
    }

    fn denied() -> Box<Failed> {
        Box::new(Failed::Naming(io::ErrorKind::PermissionDenied.into()))
    }

    #[test]
    fn a_cause_is_said_once_whether_the_error_names_it_or_not() {
        let said = "cannot open x: permission denied";
        for (error, expected) in [
            (*denied(), vec![said]),
            (Failed::Silent(denied()), vec!["the store failed", said]),
            (Failed::Transparent(denied()), vec![said]),
            (Failed::Silent(Box::new(Failed::Transparent(denied()))), vec!["the store failed", said]),
        ] {
            assert_eq!(texts(&error), expected);
            assert_eq!(told(&error), expected.join(": "));
        }
    }
}
