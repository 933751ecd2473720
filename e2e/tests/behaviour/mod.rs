//! What users rely on, each as one function on any running platform: the local processes and the cluster prove the same list.

pub mod auth;
pub mod bad_input;
pub mod catch_up;
pub mod content;
pub mod conversations;
pub mod devices;
pub mod history;
pub mod identity;
pub mod lists;
pub mod log;
pub mod retry;
pub mod send;
pub mod socket;

use std::time::Duration;

use kith_e2e::{
    client::{Draft, Sent},
    target::{Target, User},
};

/// Why a behaviour could not be shown.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
/// What a behaviour comes to.
pub type Proof = Result<(), Failure>;

/// Longer than anything here takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Two users nobody else knows.
pub async fn two(target: &Target) -> Result<(User, User), Failure> {
    Ok((target.new_user("alice").await?, target.new_user("bob").await?))
}

/// Sends texts one after the other.
pub async fn say(from: &User, to: &User, texts: &[&str]) -> Result<Vec<Sent>, Failure> {
    let mut sent = Vec::new();
    for text in texts {
        sent.push(from.api.send_until_stored(&Draft::to(&to.id, text), SOON).await?);
    }
    Ok(sent)
}

/// Makes a test of every behaviour; `$with` runs one on a platform.
#[macro_export]
macro_rules! every_behaviour {
    ($with:path) => {
        every_behaviour!($with, message_send: behaviour::send, [
            a_message_is_stored_and_reaches_the_other_users_socket,
            a_message_sent_on_the_socket_is_acknowledged_and_delivered,
            every_device_of_the_recipient_gets_the_message,
            a_conversation_is_gapless_and_in_order_from_both_sides,
            a_business_line_sends_for_its_user,
            content_of_every_type_comes_back_as_it_was_sent,
        ]);
        every_behaviour!($with, message_catch_up: behaviour::catch_up, [
            messages_sent_while_offline_are_pushed_at_login_in_order,
            what_a_device_has_acknowledged_is_not_pushed_to_it_again,
            a_dropped_connection_comes_back_without_a_hole,
            sync_gives_what_lies_after_each_cursor,
        ]);
        every_behaviour!($with, message_history: behaviour::history, [
            pages_in_both_directions_hold_everything_once,
            strangers_see_nothing,
        ]);
        every_behaviour!($with, message_retry: behaviour::retry, [
            the_same_client_msg_id_is_stored_once_and_answers_the_same_ids,
            the_same_client_msg_id_with_another_payload_is_a_conflict,
            the_same_client_msg_id_of_another_sender_is_another_message,
            concurrent_retries_are_stored_once,
        ]);
        every_behaviour!($with, message_conversations: behaviour::conversations, [
            unread_counts_what_others_wrote_and_read_never_moves_back,
            a_first_message_is_in_both_lists_when_it_is_acknowledged,
            the_list_is_ordered_by_activity_and_pages_hold_everything_once,
            a_cleared_conversation_is_cleared_for_the_caller_alone,
        ]);
        every_behaviour!($with, message_lists: behaviour::lists, [
            a_cursor_that_was_not_given_out_is_refused_by_every_list,
            a_page_of_one_shows_the_conversation_with_the_newest_message,
            sync_pages_come_to_an_end_with_everything,
            a_friend_request_is_taken_back_and_leaves_nothing,
            a_lines_newer_record_is_taken_after_the_users_own_edit,
        ]);
        every_behaviour!($with, message_bad_input: behaviour::bad_input, [
            a_malformed_request_is_refused_with_the_fields_name,
            a_body_of_another_kind_or_size_is_refused_by_status,
            a_refused_message_changes_nothing,
            an_unknown_recipient_is_not_found,
        ]);
        every_behaviour!($with, message_identity: behaviour::identity, [
            ids_that_could_be_read_in_two_ways_are_refused,
            a_conversation_of_others_is_as_one_that_does_not_exist,
            what_is_a_fixed_word_of_a_path_is_an_id_all_the_same,
            every_method_of_a_path_with_an_id_is_there_for_the_fixed_words_beside_it,
            an_array_is_taken_for_an_object_in_no_body,
        ]);
        every_behaviour!($with, message_content: behaviour::content, [
            a_text_of_blanks_is_refused_and_changes_nothing,
            a_reaction_is_one_emoji_in_one_spelling_or_a_shortcode,
            a_system_message_comes_from_a_business_line_alone,
            a_push_token_is_set_and_taken_off,
        ]);
        every_behaviour!($with, message_auth: behaviour::auth, [
            a_call_without_a_good_token_is_unauthenticated,
            a_socket_without_a_good_token_is_closed_for_good,
            a_silent_socket_is_closed_after_a_few_seconds,
            keys_and_the_description_of_the_api_are_public,
        ]);
        every_behaviour!($with, message_socket: behaviour::socket, [
            a_ping_is_answered,
            a_broken_frame_closes_with_the_protocol_code,
            a_frame_that_is_too_long_closes_with_the_protocol_code,
            a_clients_close_frame_is_answered,
            a_refused_send_names_the_frame_and_keeps_the_connection,
            an_acknowledgement_on_the_socket_moves_the_cursor,
        ]);
        every_behaviour!($with, message_devices: behaviour::devices, [
            a_device_that_was_sent_away_is_out_at_once_and_not_listed_again,
            sending_made_up_devices_away_keeps_nobody_out,
            a_cursor_above_the_end_hides_no_live_message,
        ]);
        every_behaviour!($with, message_log: behaviour::log, [
            the_event_log_replays_to_the_same_conversation,
        ]);
    };
    ($with:path, $name:ident: $outer:ident::$module:ident, [$($test:ident,)+]) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    $with(async |target| $crate::$outer::$module::$test(target).await).await;
                }
            )+
        }
    };
}
