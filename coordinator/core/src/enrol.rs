//! Enrolment: who gets a first certificate.
//!
//! A token is derived from the installation's token key, the machine's id and its incarnation, so that a coordinator
//! that was killed between writing its plan and calling the provider gives the same machine the same token again, and
//! nothing that could be stolen from the store is stored. It works once: the first key that uses it is remembered, and
//! only that key may ask again, because its answer may have been lost, or one that was certified for the machine since: a
//! machine that was cut off for longer than its certificate lives shows by its key that it is the same.

use keelson_model::{FleetEvent, MachinePhase, Severity};
use keelson_protocol::message::{EnrolRequest, Refusal, RefusalCode};
use keelson_protocol::{Incarnation, MachineId, SecretBytes};
use ring::hmac;

use crate::effect::{Effect, EnrolId};
use crate::limits::TOKEN_LIFE;
use crate::state::{CoordinatorCore, Now};

impl CoordinatorCore {
    /// The enrolment token of a machine, in hex.
    pub(crate) fn token(&self, machine: &MachineId, incarnation: Incarnation) -> SecretBytes {
        let tag = hmac::sign(&self.token_key(), self.token_text(machine, incarnation).as_bytes());
        SecretBytes::new(hex::encode(tag).into_bytes())
    }

    pub(crate) fn token_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.settings.token_key.expose_secret())
    }

    fn token_text(&self, machine: &MachineId, incarnation: Incarnation) -> String {
        format!("keelson enrolment 1|{}|{machine}|{incarnation}", self.settings.install)
    }

    pub(crate) fn on_enrol(
        &mut self,
        now: Now,
        id: EnrolId,
        request: &EnrolRequest,
        key_hash: Option<String>,
    ) {
        match self.check_enrol(now, request, key_hash) {
            Ok(key_hash) => self.accept_enrol(now, id, request, key_hash),
            Err(refusal) => {
                self.metrics.enrol_refused += 1;
                if refusal.code == RefusalCode::TokenUsed
                    && let Some(machine) = self.machines.get(&request.machine)
                {
                    let since = self.forgot_itself(machine).unwrap_or(now.mono);
                    if let Some(machine) = self.machines.get_mut(&request.machine) {
                        machine.other_key = Some(since);
                    }
                }
                let severity = if refusal.code == RefusalCode::UnknownMachine {
                    Severity::Warning
                } else {
                    Severity::Alarm
                };
                if self.is_news(now, &request.machine, &refusal) {
                    let event = self.event_of(now, &request.machine, severity, "EnrolmentRefused");
                    let (cause, outcome) = (refusal.text.clone(), "no certificate was given".to_owned());
                    self.note(FleetEvent { cause, outcome, ..event });
                }
                self.effects.push(Effect::RefuseEnrol { id, refusal });
            }
        }
    }

    fn check_enrol(
        &self,
        now: Now,
        request: &EnrolRequest,
        key_hash: Option<String>,
    ) -> Result<String, Refusal> {
        let refuse = |code, text: &str| Err(Refusal { code, text: text.to_owned() });
        let Some(machine) = self.machines.get(&request.machine) else {
            return refuse(
                RefusalCode::UnknownMachine,
                "no blueprint names this machine; it will be removed",
            );
        };
        let row = &machine.row;
        let token = hex::decode(request.token.expose_secret()).unwrap_or_default();
        let text = self.token_text(&row.id, request.incarnation);
        if hmac::verify(&self.token_key(), text.as_bytes(), &token).is_err() {
            return refuse(RefusalCode::WrongToken, "the token is not the one that this machine was given");
        }
        self.check_incarnation(row, request.incarnation)?;
        let Some(key_hash) = key_hash else {
            return refuse(RefusalCode::BadSigningRequest, "the signing request is malformed or not P-256");
        };
        match &row.enrolled_key {
            Some(used) if *used != key_hash && !row.renewed_keys.contains(&key_hash) => refuse(
                RefusalCode::TokenUsed,
                "the token was used with another key: somebody else enrolled as this machine, or it lost its key; re-create it",
            ),
            None if matches!(row.phase, MachinePhase::Booting { since } if now.wall.since(since) > TOKEN_LIFE) => {
                refuse(
                    RefusalCode::TokenExpired,
                    "the token has expired: the machine took too long to boot; re-create it",
                )
            }
            _ => Ok(key_hash),
        }
    }

    fn accept_enrol(&mut self, now: Now, id: EnrolId, request: &EnrolRequest, key_hash: String) {
        self.metrics.enrolled += 1;
        let Some(machine) = self.machines.get_mut(&request.machine) else { return };
        let first = machine.row.enrolled_key.is_none();
        machine.row.enrolled_key = Some(key_hash);
        if matches!(
            machine.row.phase,
            MachinePhase::Planned
                | MachinePhase::Creating { .. }
                | MachinePhase::Retrying { .. }
                | MachinePhase::Booting { .. }
        ) {
            machine.row.phase = MachinePhase::Enrolled { since: now.wall };
        }
        let incarnation = machine.row.incarnation;
        self.save_machine(&request.machine);
        self.touch(&request.machine);
        if first {
            let event = self.event_of(now, &request.machine, Severity::Info, "MachineEnrolled");
            let cause = "the machine showed its token".to_owned();
            let outcome = "it was given a link certificate".to_owned();
            self.note(FleetEvent { cause, outcome, ..event });
        }
        self.effects.push(Effect::AcceptEnrol {
            id,
            machine: request.machine.clone(),
            incarnation,
            signing_request: request.signing_request.clone(),
        });
    }
}
