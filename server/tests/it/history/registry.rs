//! Tokens, certificates, and what they are worth.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use fleetsock_proto::{
    host::HostId,
    time::Timestamp,
    token::{NewToken, Operator, Role, TokenPurpose},
};
use fleetsock_server::history::{
    Actor, Claim, HistoryError, Issue, IssuedCertificate, Labels, REDEEM_AGAIN, Registry, Standing, Subject,
};
use tokio::task::JoinSet;

use crate::{
    engine::{Engine, World, actor, certificate, claim, issue},
    scene::at,
};

async fn token<E: Engine>(world: &World<E>, id: &str, uses: u32) {
    let purpose = TokenPurpose::Hosts { labels: Labels::new() };
    let new = NewToken { lifetime_s: 3600, uses, purpose, note: String::new() };
    world.store().create_token(id.to_owned(), [1; 32], new, actor(0)).await.unwrap();
}

async fn redeem<E: Engine>(world: &World<E>, claim: Claim, serial: &[u8]) -> Result<IssuedCertificate, HistoryError> {
    world.store().redeem(claim, issue(serial).0).await
}

fn key(id: &str, number: u32) -> Claim {
    claim(id, "web1", &number.to_be_bytes())
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, HistoryError>) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, HistoryError::TokenRefused), "{error:?}");
    assert_eq!(error.to_string(), "the token is not valid");
}

async fn hosts<E: Engine>(world: &World<E>) -> usize {
    world.host_names(Default::default()).await.unwrap().len()
}

/// For a token that must not be used.
fn never() -> Issue {
    Box::new(|subject| panic!("a certificate was made for {subject:?}"))
}

pub(super) async fn a_token_is_used_as_often_as_it_says<E: Engine>() {
    let mut world = World::<E>::new().await;
    token(&world, "one", 1).await;
    token(&world, "three", 3).await;
    for (id, uses) in [("one", 1_u32), ("three", 3)] {
        for number in 0..uses {
            let serial = [id.as_bytes(), &number.to_be_bytes()].concat();
            assert_eq!(redeem(&world, key(id, number), &serial).await.unwrap(), certificate(&serial));
        }
        refused(world.store().redeem(key(id, 99), never()).await);
        world.restart().await;
        refused(world.store().redeem(key(id, 98), never()).await);
    }
    assert_eq!(hosts(&world).await, 4);
    let left: Vec<_> = world.store().list_tokens().await.unwrap();
    assert!(left.iter().all(|token| token.uses_left == 0), "{left:?}");
}

pub(super) async fn a_thousand_parallel_uses_of_a_token_for_one_succeed_once<E: Engine>() {
    let world = World::<E>::new().await;
    token(&world, "one", 1).await;
    let made = Arc::new(AtomicU32::new(0));
    let mut racing = JoinSet::new();
    for number in 0..1000 {
        let (store, made) = (world.store().clone(), made.clone());
        racing.spawn(async move {
            let issue = Box::new(move |_: &Subject| {
                made.fetch_add(1, Relaxed);
                Ok(certificate(&number.to_string().into_bytes()))
            });
            store.redeem(key("one", number), issue).await
        });
    }
    let (won, lost): (Vec<_>, Vec<_>) = racing.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len(), made.load(Relaxed)), (1, 999, 1));
    lost.into_iter().for_each(refused);
    assert_eq!(hosts(&world).await, 1);
}

pub(super) async fn whatever_is_wrong_with_a_token_the_refusal_is_the_same<E: Engine>() {
    let world = World::<E>::new().await;
    for id in ["good", "used", "revoked"] {
        token(&world, id, 1).await;
    }
    redeem(&world, key("used", 1), b"used").await.unwrap();
    world.store().revoke_token("revoked".to_owned(), actor(1)).await.unwrap();
    for wrong in [
        key("unknown", 2),
        Claim { secret_hash: [2; 32], ..key("good", 2) },
        Claim { at: at(3600), ..key("good", 2) },
        key("used", 2),
        key("revoked", 2),
        // Also for the key that used it before.
        Claim { at: at(3600), ..key("used", 1) },
        Claim { secret_hash: [2; 32], ..key("used", 1) },
    ] {
        refused(world.store().redeem(wrong, never()).await);
    }
    assert_eq!(hosts(&world).await, 1);
    let last = Timestamp::from_micros(at(3600).as_micros() - 1);
    redeem(&world, Claim { at: last, ..key("good", 3) }, b"good").await.unwrap();
}

pub(super) async fn a_certificate_that_was_not_made_costs_no_use<E: Engine>() {
    let world = World::<E>::new().await;
    token(&world, "one", 1).await;
    let fails: Issue = Box::new(|_| Err("no entropy".to_owned()));
    let error = world.store().redeem(key("one", 1), fails).await.unwrap_err();
    assert!(matches!(error, HistoryError::Engine(_)), "{error:?}");
    assert_eq!(hosts(&world).await, 0);
    redeem(&world, key("one", 1), b"one").await.unwrap();
}

pub(super) async fn the_same_key_is_answered_again_for_ten_minutes_and_not_longer<E: Engine>() {
    let mut world = World::<E>::new().await;
    token(&world, "one", 1).await;
    token(&world, "two", 2).await;
    let first = at(10);
    let when = |id, number, at| Claim { at, ..key(id, number) };
    redeem(&world, when("one", 1, first), b"one").await.unwrap();
    redeem(&world, when("two", 1, first), b"two").await.unwrap();
    let over = first.plus(REDEEM_AGAIN);
    let last = Timestamp::from_micros(over.as_micros() - 1);
    for moment in [first, last] {
        for id in ["one", "two"] {
            let again = world.store().redeem(when(id, 1, moment), never()).await.unwrap();
            assert_eq!(again, certificate(id.as_bytes()));
        }
        world.restart().await;
    }
    assert_eq!(hosts(&world).await, 2, "an answer that is given again makes no host");
    let left: Vec<_> = world.store().list_tokens().await.unwrap().iter().map(|token| token.uses_left).collect();
    assert_eq!(left, [0, 1]);
    // Another key is another use, and after ten minutes so is the same one.
    refused(world.store().redeem(when("one", 2, last), never()).await);
    refused(world.store().redeem(when("one", 1, over), never()).await);
    assert_eq!(redeem(&world, when("two", 1, over), b"anew").await.unwrap(), certificate(b"anew"));
    assert_eq!(hosts(&world).await, 3);
}

pub(super) async fn the_first_use_of_a_new_certificate_retires_the_one_before<E: Engine>() {
    let mut world = World::<E>::new().await;
    let host = world.enrol("web1", Labels::new()).await;
    let (other, serial) = (world.enrol("web2", Labels::new()).await, |text: &str| text.as_bytes().to_vec());
    let standing = async |world: &World<E>, host: HostId, text: &str| {
        world.store().host_standing(host, serial(text)).await.unwrap()
    };
    let first = String::from_utf8(0_u32.to_be_bytes().to_vec()).unwrap();
    let add = async |world: &World<E>, text: &str| {
        world.store().add_host_certificate(host, certificate(text.as_bytes()), at(5)).await.unwrap();
    };
    assert_eq!(standing(&world, host, &first).await, Standing::Good);
    assert_eq!(standing(&world, other, &first).await, Standing::Unknown, "a serial number is of one host");
    assert_eq!(standing(&world, host, "unknown").await, Standing::Unknown);
    assert_eq!(standing(&world, HostId::random(), &first).await, Standing::Unknown);

    add(&world, "never used").await;
    add(&world, "second").await;
    assert_eq!(standing(&world, host, &first).await, Standing::Good, "until the new one is used, the old one is");
    assert_eq!(standing(&world, host, "never used").await, Standing::Superseded, "at most one is pending");
    world.restart().await;
    assert_eq!(standing(&world, host, "second").await, Standing::Good);
    assert_eq!(standing(&world, host, &first).await, Standing::Superseded);
    world.restart().await;
    assert_eq!(standing(&world, host, "second").await, Standing::Good);
    assert_eq!(standing(&world, host, &first).await, Standing::Superseded);

    add(&world, "third").await;
    let revoked = world.store().revoke_host("web1".to_owned(), "gone".to_owned(), actor(6)).await.unwrap();
    assert_eq!(revoked, host);
    for _ in 0..2 {
        for text in [first.as_str(), "second", "third"] {
            assert_eq!(standing(&world, host, text).await, Standing::Revoked);
        }
        assert_eq!(standing(&world, other, "\0\0\0\u{1}").await, Standing::Good);
        world.restart().await;
    }
}

pub(super) async fn a_host_is_revoked_by_its_id_or_a_name_that_only_it_has<E: Engine>() {
    let world = World::<E>::new().await;
    let (one, two) = (world.enrol("twin", Labels::new()).await, world.enrol("twin", Labels::new()).await);
    let revoke = async |name: String| world.store().revoke_host(name, String::new(), actor(1)).await;
    let error = revoke("twin".to_owned()).await.unwrap_err();
    assert!(
        matches!(&error, HistoryError::Invalid(text) if text.contains("several hosts are called `twin`")),
        "{error}"
    );
    let error = revoke("nobody".to_owned()).await.unwrap_err();
    assert!(matches!(error, HistoryError::NotFound(_)), "{error}");
    assert_eq!(revoke(two.to_string()).await.unwrap(), two);
    let serial = |number: u32| number.to_be_bytes().to_vec();
    assert_eq!(world.store().host_standing(one, serial(0)).await.unwrap(), Standing::Good);
    assert_eq!(world.store().host_standing(two, serial(1)).await.unwrap(), Standing::Revoked);
}

pub(super) async fn operators_are_known_by_name_role_and_serial_number<E: Engine>() {
    let mut world = World::<E>::new().await;
    let operator = |name: &str, role| Operator::new(name, role).unwrap();
    let alice = operator("alice", Role::Viewer);
    world.store().add_operator(alice.clone(), certificate(b"a1"), actor(1)).await.unwrap();
    world.store().add_operator(alice.clone(), certificate(b"a2"), actor(2)).await.unwrap();
    // A token may admit an operator too.
    let bob = operator("bob", Role::Admin);
    let purpose = TokenPurpose::Operator(bob.clone());
    let new = NewToken { lifetime_s: 60, uses: 1, purpose: purpose.clone(), note: "for bob".to_owned() };
    let made = world.store().create_token("bob".to_owned(), [1; 32], new, actor(3)).await.unwrap();
    let (issue, subject) = issue(b"b1");
    world.store().redeem(Claim { at: at(4), ..key("bob", 1) }, issue).await.unwrap();
    assert_eq!(subject.recv().unwrap(), Subject::Operator(bob.clone()));
    assert_eq!(hosts(&world).await, 0);
    world.restart().await;
    for (operator, serial, expected) in [
        (&alice, b"a1", Standing::Good),
        (&alice, b"a2", Standing::Good),
        (&bob, b"b1", Standing::Good),
        (&operator("alice", Role::Admin), b"a1", Standing::Unknown),
        (&bob, b"a1", Standing::Unknown),
        (&alice, b"??", Standing::Unknown),
    ] {
        let standing = world.store().operator_standing(operator.clone(), serial.to_vec()).await.unwrap();
        assert_eq!(standing, expected, "{operator} {serial:?}");
    }
    let listed = world.store().list_tokens().await.unwrap();
    assert_eq!((listed.len(), &listed[0].purpose, listed[0].note.as_str()), (1, &purpose, "for bob"));
    assert_eq!((made.uses_left, listed[0].uses_left, listed[0].uses_total), (1, 0, 1));
    assert_eq!((listed[0].created_at, listed[0].expires_at), (at(3), at(63)));
}

pub(super) async fn tokens_are_listed_newest_first_for_thirty_days_after_their_end<E: Engine>() {
    const DAY: i64 = 86_400;
    let world = World::<E>::new().await;
    let mut labels = Labels::new();
    labels.insert("site".to_owned(), "a".to_owned());
    for (id, day) in [("old", 0), ("middle", 10), ("new", 31)] {
        let purpose = TokenPurpose::Hosts { labels: labels.clone() };
        let new = NewToken { lifetime_s: 3600, uses: 5, purpose, note: String::new() };
        let by = Actor { at: at(day * DAY), ..actor(0) };
        world.store().create_token(id.to_owned(), [1; 32], new, by).await.unwrap();
    }
    world.store().revoke_token("middle".to_owned(), actor(31 * DAY)).await.unwrap();
    let error = world.store().revoke_token("nothing".to_owned(), actor(0)).await.unwrap_err();
    assert!(matches!(&error, HistoryError::NotFound(text) if text.contains("`nothing`")), "{error}");
    let listed = world.store().list_tokens().await.unwrap();
    let shown: Vec<_> = listed.iter().map(|token| (token.token_id.as_str(), token.revoked)).collect();
    assert_eq!(shown, [("new", false), ("middle", true)]);
    assert!(listed.iter().all(|token| token.purpose == TokenPurpose::Hosts { labels: labels.clone() }));
}
