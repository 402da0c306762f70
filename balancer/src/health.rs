//! Whether a target works, from the answers to its checks.

/// Bad answers in a row after which a target is left. One alone may be a server that restarts within the interval.
const BAD_ANSWERS_MAX: u32 = 2;
/// Good answers in a row after which a target that was left is used again: what answers now and then does not work.
const GOOD_ANSWERS_MIN: u32 = 2;

/// What came of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The target works.
    Good,
    /// The target refused, or says itself that it does not work; with the reason.
    Bad(String),
    /// Nothing came in time. A frozen machine still takes connections, so this alone tells it from one that works.
    Silence,
}

/// What is known of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// It has not given a good answer yet, and not enough bad ones; so many of these in a row.
    Unknown { bad: u32 },
    /// It works; so many bad answers in a row since the last good one.
    Healthy { bad: u32 },
    /// It does not work; so many good answers in a row since the last bad one.
    Unhealthy { good: u32 },
}

impl Health {
    /// What is known after another answer.
    pub(crate) fn after(self, answer: &Answer) -> Self {
        match (self, answer) {
            (Self::Unknown { .. } | Self::Healthy { .. }, Answer::Good) => Self::Healthy { bad: 0 },
            (Self::Unknown { bad } | Self::Healthy { bad }, Answer::Bad(_)) if bad + 1 >= BAD_ANSWERS_MAX => {
                Self::Unhealthy { good: 0 }
            }
            (Self::Unknown { bad }, Answer::Bad(_)) => Self::Unknown { bad: bad + 1 },
            (Self::Healthy { bad }, Answer::Bad(_)) => Self::Healthy { bad: bad + 1 },
            (Self::Unhealthy { good }, Answer::Good) if good + 1 >= GOOD_ANSWERS_MIN => {
                Self::Healthy { bad: 0 }
            }
            (Self::Unhealthy { good }, Answer::Good) => Self::Unhealthy { good: good + 1 },
            (Self::Unhealthy { .. }, Answer::Bad(_)) | (_, Answer::Silence) => Self::Unhealthy { good: 0 },
        }
    }

    pub(crate) fn is_healthy(self) -> bool {
        matches!(self, Self::Healthy { .. })
    }

    pub(crate) fn is_unhealthy(self) -> bool {
        matches!(self, Self::Unhealthy { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as `g`ood, `b`ad and `s`ilence; states as `?`, `+` and `-`.
    fn check(answers: &str, expected: &str) {
        let mut health = Health::Unknown { bad: 0 };
        let states: String = answers
            .chars()
            .map(|letter| {
                health = health.after(&match letter {
                    'g' => Answer::Good,
                    'b' => Answer::Bad("it said no".to_owned()),
                    _ => Answer::Silence,
                });
                match health {
                    Health::Unknown { .. } => '?',
                    Health::Healthy { .. } => '+',
                    Health::Unhealthy { .. } => '-',
                }
            })
            .collect();
        assert_eq!(states, expected, "{answers}");
    }

    #[test]
    fn two_bad_answers_or_one_silence_condemn_and_two_good_ones_acquit() {
        check("ggbg", "++++");
        check("gbbb", "++--");
        check("gbgbgb", "++++++");
        check("bgb", "?++");
        check("bb", "?-");
        check("gs", "+-");
        check("s", "-");
        check("sggb", "--++");
        check("sgbgg", "----+");
        check("sgsgg", "----+");
    }
}
