//! The steps by which a root takes the place of another.

use std::sync::{Arc, PoisonError};

use fleetsock_proto::{root::RootState, time::Timestamp};

use super::{
    Authority, AuthorityError, Current, KnownRoot, generation, generation::Generation, rotation::Rotation,
    rotation::Step,
};
use crate::history::HistoryError;

impl Authority {
    /// Whether a step of the exchange follows from the one before; if not, why.
    pub fn may(&self, step: Step) -> Result<(), AuthorityError> {
        self.current().rotation.after(step, Timestamp::default()).map(drop).map_err(AuthorityError::Order)
    }

    /// Makes a step of the exchange, once `record` has written down which root it is about; tells of that root as it was
    /// handed out last. The step is made when its line in the folder is durable, and not at all before. Takes a while: it
    /// writes files.
    pub fn turn(
        &self,
        step: Step,
        clock: fn() -> Timestamp,
        record: impl FnOnce(&KnownRoot) -> Result<(), HistoryError>,
    ) -> Result<KnownRoot, AuthorityError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.may(step)?;
        let before = self.current();
        let fresh = match step {
            Step::Prepare => Some(self.make_next(before.rotation, clock())?),
            Step::Activate | Step::Retire | Step::Abort => None,
        };
        // Each step is about the one root that is not active before it.
        let about = fresh.as_ref().or(before.other.as_ref()).ok_or(AuthorityError::Order("no root is prepared"))?;
        let number = about.number;
        let mut known =
            KnownRoot { state: before.rotation.state(number), pin: about.pin, expires_at: about.expires_at };
        if step == Step::Prepare {
            known.state = RootState::Prepared;
        }
        record(&known)?;
        // Held while it is written down: whoever issues in the old way now read the clock before us.
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let rotation = before.rotation.after(step, clock()).map_err(AuthorityError::Order)?;
        rotation.write(&self.folder)?;
        let all: Vec<_> = before.all().chain(&fresh).map(Arc::clone).collect();
        let find = |number| all.iter().find(|one| one.number == number).map(Arc::clone);
        let active = find(rotation.active).unwrap_or(before.active);
        *current = Current { rotation, active, other: rotation.other().and_then(find) };
        drop(current);
        if rotation.uses(number) {
            known.state = rotation.state(number);
        }
        if let Err(error) = generation::sweep(&self.folder, rotation) {
            // The step is made; the next start tries again.
            tracing::warn!(%error, "cannot remove the keys of a root that is not used any more");
        }
        Ok(known)
    }

    /// Makes the generation that is to come. What is left of an attempt that was cut off gives way.
    fn make_next(&self, rotation: Rotation, now: Timestamp) -> Result<Arc<Generation>, AuthorityError> {
        generation::sweep(&self.folder, rotation)?;
        let number = rotation.next_number();
        generation::make(&self.folder, number, Some(rotation.active), &self.trust_domain, now)?;
        Generation::load(&self.folder, number, &self.trust_domain, now).map(Arc::new)
    }
}
