//! What every engine of the history must do, written against the traits [`History`] and [`Registry`] only.
//!
//! A second engine runs the same cases by one more line `conformance!(its_name, ItsEngine)`.
//!
//! [`History`]: fleetsock_server::history::History
//! [`Registry`]: fleetsock_server::history::Registry

mod answers;
mod batches;
mod changes;
mod digests;
mod filters;
mod gaps;
mod lives;
mod pairs;
mod readers;
mod registry;
mod sessions;
mod snapshots;
mod sums;

/// Makes a test of each case.
macro_rules! cases {
    ($engine:ty, $subject:ident: $($case:ident)+) => {
        mod $subject {
            $(
                #[tokio::test]
                async fn $case() {
                    super::super::$subject::$case::<$engine>().await;
                }
            )+
        }
    };
}

/// Every case, for one engine.
macro_rules! conformance {
    ($name:ident, $engine:ty) => {
        mod $name {
            cases! { $engine, batches:
                batches_are_stored_once_and_in_order
                a_lower_epoch_is_acknowledged_and_changes_nothing
                a_numbering_begins_with_a_snapshot
                the_numbering_survives_a_restart
                hosts_that_report_at_once_keep_their_own_numbers
                a_host_that_nobody_enrolled_stores_nothing
                a_batch_that_was_stored_by_half_is_stored_once
                what_was_acknowledged_is_there_after_a_close
            }
            cases! { $engine, lives:
                a_session_that_opens_and_closes_is_one_interval
                what_closed_without_an_opening_has_the_interval_that_it_tells
                an_update_changes_the_open_row_and_begins_one_that_was_not_known
                presence_keeps_the_first_opening
                a_udp_listener_becomes_a_session_and_a_listener_again
                a_socket_that_connects_elsewhere_begins_another_life
                the_end_of_another_life_does_not_hide_the_open_one
                a_life_that_is_told_again_with_its_opening_is_open_again
                owners_keep_their_order
                an_owner_is_kept_when_nobody_is_seen_later
                bytes_are_never_fewer_than_they_were
                a_close_before_the_opening_ends_where_it_began
                a_clock_that_is_a_year_off_is_corrected_and_one_of_a_second_is_not
            }
            cases! { $engine, snapshots:
                what_a_snapshot_does_not_name_was_lost_after_the_walk_before
                a_sign_of_life_moves_the_last_observation
                nothing_is_lost_before_it_opened
                a_connection_that_an_agent_knows_by_no_cookie_goes_on_as_the_one_with_its_pair
                a_snapshot_in_parts_ends_with_its_last_even_across_a_restart
                an_unfinished_snapshot_closes_nothing
                a_last_part_without_its_first_closes_nothing
                a_reboot_ends_everything_even_when_cookies_repeat
            }
            cases! { $engine, digests:
                a_digest_of_the_same_table_proves_it
                a_digest_of_another_table_is_a_gap_since_the_last_proof_and_a_snapshot_heals_it
                after_lost_batches_digests_wait_for_a_snapshot
                a_snapshot_that_does_not_help_is_not_asked_for_again_at_once
            }
            cases! { $engine, gaps:
                a_new_numbering_leaves_a_gap_since_the_last_walk
                a_gap_that_was_told_twice_is_one
                every_lost_batch_of_a_walk_is_counted_once
                what_a_silent_host_did_not_tell_yet_is_not_observed
                what_a_revoked_host_sees_is_not_observed
                losses_that_follow_each_other_are_one_gap
                a_gap_moves_the_numbering_over_what_will_never_come
                gaps_are_listed_newest_first_within_window_and_hosts
                an_answer_tells_the_gaps_of_its_moment_or_window
                what_lies_before_the_first_report_was_not_observed
            }
            cases! { $engine, sessions:
                a_moment_shows_what_was_open_then
                a_window_shows_what_was_open_in_it
                sessions_come_newest_first_open_ones_before_closed_ones
                many_hosts_and_few_hosts_give_the_same_rows
                a_peer_of_the_past_is_named_after_the_host_that_had_its_address_then
                a_peer_that_is_a_host_of_the_fleet_is_named
            }
            cases! { $engine, pairs:
                the_process_at_the_other_end_is_found_from_either_end_while_it_is_open_and_after
                what_is_translated_on_the_way_or_stays_elsewhere_has_no_other_end
                an_end_that_could_be_that_of_several_hosts_is_none
                sockets_that_are_used_again_have_the_other_end_of_their_own_life
                many_sessions_are_looked_through_when_that_is_wanted_and_an_answer_says_whether_they_were
            }
            cases! { $engine, changes:
                an_owner_that_a_walk_saw_changed_between_it_and_the_walk_before
                an_owner_that_changed_while_nobody_looked_is_lost
                a_change_of_owners_is_never_told_before_the_one_before_it
                a_port_that_is_reached_from_further_than_ever_before_has_a_wider_scope
                starts_of_agents_and_hosts_are_told_when_asked_for
                sessions_are_told_by_both_ends_among_the_listeners
                every_change_is_told_once_however_many_there_are
                changes_are_chosen_by_socket_scope_and_either_owner
                unix_listeners_are_told_apart_by_their_paths
                what_is_new_was_not_there_since_the_baseline_began
                a_question_that_would_hold_too_much_is_refused_with_words
            }
            cases! { $engine, sums:
                groups_are_counted_now_then_and_within_a_window
                listeners_of_many_hosts_are_those_of_each
                filters_choose_what_is_counted_and_peers_are_those_of_sessions
                the_first_of_more_groups_than_may_be_held_are_told_when_these_are_asked_for
                the_largest_groups_come_first_and_an_answer_that_was_cut_says_so
            }
            cases! { $engine, filters:
                every_filter_of_listeners_selects_what_it_says
                every_filter_of_sessions_selects_what_it_says
                hosts_are_chosen_by_name_pattern_id_and_label
                a_wrong_question_is_refused_with_a_hint
            }
            cases! { $engine, answers:
                listeners_come_by_host_protocol_port_and_address
                listeners_of_a_moment_are_those_open_then
                an_answer_is_cut_at_its_limit_and_says_so
                an_answer_counts_hosts_and_names_those_that_are_stale
                hosts_show_what_they_said_and_what_is_open
                rows_survive_every_value_of_every_column
                a_namespace_is_called_what_it_was_called_then
            }
            cases! { $engine, readers:
                a_reader_that_goes_away_ends_the_question
                a_reader_that_never_reads_is_too_slow
                a_reader_of_changes_that_never_reads_keeps_no_batch_waiting
                a_question_that_finds_no_place_is_too_slow
                readers_see_whole_batches_while_others_are_stored
            }
            cases! { $engine, registry:
                a_token_is_used_as_often_as_it_says
                a_thousand_parallel_uses_of_a_token_for_one_succeed_once
                whatever_is_wrong_with_a_token_the_refusal_is_the_same
                a_certificate_that_was_not_made_costs_no_use
                the_same_key_is_answered_again_for_ten_minutes_and_not_longer
                the_first_use_of_a_new_certificate_retires_the_one_before
                a_host_is_revoked_by_its_id_or_a_name_that_only_it_has
                operators_are_known_by_name_role_and_serial_number
                tokens_are_listed_newest_first_for_thirty_days_after_their_end
            }
        }
    };
}

conformance!(sqlite, crate::engine::Sqlite);
