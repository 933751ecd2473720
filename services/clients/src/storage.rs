//! The typed client of the storage layer: each call goes to the instance that holds its partition, batches are split by instance, and
//! whatever may be repeated is repeated until the call's deadline (all of storage's calls are idempotent).

use std::{future::Future, time::Duration};

use kith_proto::{
    chat::v1::{Position, Receipt},
    storage::v1::{
        AckError, AckRequest, AckResponse, AddMembersRequest, AddMembersResponse, AnswerFriendRequestRequest,
        AnswerFriendRequestResponse, AppendRequest, ClearRequest, ClearResponse, Conversation, ConversationMessages,
        CreateConversationRequest, CreateConversationResponse, DeleteDeviceRequest, DeleteDeviceResponse,
        DeleteFriendRequest, DeleteFriendResponse, DissolveRequest, DissolveResponse, EditRequest, EditResponse,
        GetConversationsRequest, GetReceiptsRequest, GetReceiptsResponse, GetRevocationRequest, GetRevocationResponse,
        GetUsersRequest, GetVersionRequest, ListAfterRequest, ListBehindRequest, ListBehindResponse, ListBlocksRequest,
        ListBlocksResponse, ListConversationsRequest, ListConversationsResponse, ListDevicesRequest,
        ListDevicesResponse, ListFriendRequestsRequest, ListFriendRequestsResponse, ListFriendsRequest,
        ListFriendsResponse, ListMembersRequest, ListMembersResponse, ListMessagesRequest, ListMessagesResponse,
        MarkReadRequest, MarkReadResponse, OpenDirectRequest, OpenDirectResponse, PutDeviceRequest, PutDeviceResponse,
        PutFriendRequest, PutFriendResponse, ReactRequest, ReactResponse, RecallRequest, RecallResponse,
        RemoveMembersRequest, RemoveMembersResponse, RequestFriendRequest, RequestFriendResponse, RevokeTokensRequest,
        RevokeTokensResponse, SetBlockRequest, SetBlockResponse, SetListEntryRequest, SetListEntryResponse,
        UpdateConversationRequest, UpdateConversationResponse, UpdateMemberRequest, UpdateMemberResponse, UpsertResult,
        UpsertUsersRequest, User, UserUpdate, conversations_client::ConversationsClient,
        messages_client::MessagesClient, users_client::UsersClient,
    },
};
use tokio_util::sync::CancellationToken;

use crate::append::Appends;
use kith_contract::ids;
use kith_kit::config::Config;
use kith_platform::Service;
use kith_rpc::{
    batch::{Settled, settled, timed},
    client::{MAX_MESSAGE_BYTES, Transport},
    error::Error,
    route::{RouteError, Router},
};

/// What one answer that holds messages weighs at most, everything counted.
pub const PAGE_BYTES: usize = 4 << 20;

/// How long a call may take, retries included.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// The storage layer as its callers see it. Cheap to clone.
#[derive(Clone)]
pub struct Storage {
    router: Router,
    appends: Appends,
    partitions: u32,
}

macro_rules! unary {
    ($($client:ident . $name:ident($request:ty) -> $response:ty, by $key:ident;)*) => {
        impl Storage {
            $(
                #[doc = concat!("`", stringify!($name), "` at the holder of `", stringify!($key), "`; see the contract in `kith.storage.v1`.")]
                pub async fn $name(&self, request: $request) -> Result<$response, Error> {
                    let key = self.key(&request.$key);
                    self.router
                        .call(key, DEADLINE, request, |transport, request| async move {
                            $client::new(transport).max_decoding_message_size(MAX_MESSAGE_BYTES).$name(request).await
                        })
                        .await
                }
            )*
        }
    };
}

unary! {
    MessagesClient.list_messages(ListMessagesRequest) -> ListMessagesResponse, by conversation_id;
    MessagesClient.recall(RecallRequest) -> RecallResponse, by conversation_id;
    MessagesClient.edit(EditRequest) -> EditResponse, by conversation_id;
    MessagesClient.react(ReactRequest) -> ReactResponse, by conversation_id;
    ConversationsClient.create_conversation(CreateConversationRequest) -> CreateConversationResponse, by conversation_id;
    ConversationsClient.update_conversation(UpdateConversationRequest) -> UpdateConversationResponse, by conversation_id;
    ConversationsClient.dissolve(DissolveRequest) -> DissolveResponse, by conversation_id;
    ConversationsClient.list_conversations(ListConversationsRequest) -> ListConversationsResponse, by user_id;
    ConversationsClient.set_list_entry(SetListEntryRequest) -> SetListEntryResponse, by user_id;
    ConversationsClient.clear(ClearRequest) -> ClearResponse, by user_id;
    ConversationsClient.mark_read(MarkReadRequest) -> MarkReadResponse, by conversation_id;
    ConversationsClient.list_behind(ListBehindRequest) -> ListBehindResponse, by user_id;
    ConversationsClient.get_receipts(GetReceiptsRequest) -> GetReceiptsResponse, by conversation_id;
    ConversationsClient.add_members(AddMembersRequest) -> AddMembersResponse, by conversation_id;
    ConversationsClient.remove_members(RemoveMembersRequest) -> RemoveMembersResponse, by conversation_id;
    ConversationsClient.update_member(UpdateMemberRequest) -> UpdateMemberResponse, by conversation_id;
    ConversationsClient.list_members(ListMembersRequest) -> ListMembersResponse, by conversation_id;
    UsersClient.list_friends(ListFriendsRequest) -> ListFriendsResponse, by user_id;
    UsersClient.put_friend(PutFriendRequest) -> PutFriendResponse, by user_id;
    UsersClient.delete_friend(DeleteFriendRequest) -> DeleteFriendResponse, by user_id;
    UsersClient.request_friend(RequestFriendRequest) -> RequestFriendResponse, by user_id;
    UsersClient.list_friend_requests(ListFriendRequestsRequest) -> ListFriendRequestsResponse, by user_id;
    UsersClient.answer_friend_request(AnswerFriendRequestRequest) -> AnswerFriendRequestResponse, by user_id;
    UsersClient.set_block(SetBlockRequest) -> SetBlockResponse, by user_id;
    UsersClient.list_blocks(ListBlocksRequest) -> ListBlocksResponse, by user_id;
    UsersClient.put_device(PutDeviceRequest) -> PutDeviceResponse, by user_id;
    UsersClient.list_devices(ListDevicesRequest) -> ListDevicesResponse, by user_id;
    UsersClient.delete_device(DeleteDeviceRequest) -> DeleteDeviceResponse, by user_id;
    UsersClient.revoke_tokens(RevokeTokensRequest) -> RevokeTokensResponse, by user_id;
    UsersClient.get_revocation(GetRevocationRequest) -> GetRevocationResponse, by user_id;
}

impl Storage {
    /// The storage layer of the ChatCluster in `config`.
    pub fn new(config: &Config, shutdown: CancellationToken) -> Result<Self, RouteError> {
        let router = Router::new(config, Service::Storage, shutdown)?;
        Ok(Self { router, appends: Appends::default(), partitions: config.cluster.partitions })
    }

    /// The version of a partition's newest committed event.
    pub async fn get_version(&self, partition: u32) -> Result<u64, Error> {
        let request = GetVersionRequest { partition };
        let answer = self.router.call(u64::from(partition), DEADLINE, request, |transport, request| async move {
            ConversationsClient::new(transport).max_decoding_message_size(MAX_MESSAGE_BYTES).get_version(request).await
        });
        Ok(answer.await?.ver)
    }

    /// The routing beneath.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The routing key of an entity: its partition.
    pub fn key(&self, id: &str) -> u64 {
        u64::from(ids::partition_of(id, self.partitions))
    }

    /// Waits until at least one instance is known.
    pub async fn discovered(&self) {
        let mut endpoints = self.router.discovery().watch();
        // An error means that watching has ended with the process.
        drop(endpoints.wait_for(|e| !e.is_empty()).await);
    }

    async fn batch<K, V, F, Fut>(
        &self,
        items: Vec<K>,
        id: impl Fn(&K) -> &str,
        ask: F,
    ) -> Result<Vec<Settled<K, V>>, Error>
    where
        K: Clone,
        F: Fn(Transport, Vec<K>) -> Fut,
        Fut: Future<Output = Result<Vec<Settled<K, V>>, tonic::Status>>,
    {
        self.router.batch(DEADLINE, items, |item| self.key(id(item)), ask).await
    }

    /// Stores a message; see the contract in `kith.storage.v1`.
    pub async fn append(&self, request: AppendRequest) -> Result<Receipt, Error> {
        self.router
            .repeat(self.key(&request.conversation_id), DEADLINE, |address, limit| {
                let (address, append) = (address.to_owned(), request.clone());
                async move { self.appends.append(self.router.dialer(), &address, append, limit).await }
            })
            .await
    }

    /// Makes the direct conversation of two users if it is not there.
    pub async fn open_direct(&self, request: OpenDirectRequest) -> Result<OpenDirectResponse, Error> {
        let conversation_id = ids::direct_conversation_id(&request.user_a, &request.user_b)?;
        self.router
            .call(self.key(&conversation_id), DEADLINE, request, |transport, request| async move {
                ConversationsClient::new(transport).open_direct(request).await
            })
            .await
    }

    /// The profiles of the users that exist, in no order.
    pub async fn get_users(&self, user_ids: Vec<String>) -> Result<Vec<User>, Error> {
        let found = self
            .batch(user_ids, String::as_str, |transport, user_ids| async move {
                let mut client = UsersClient::new(transport).max_decoding_message_size(MAX_MESSAGE_BYTES);
                let response = client.get_users(timed(GetUsersRequest { user_ids })).await?.into_inner();
                Ok(response.users.into_iter().map(Settled::Done).collect())
            })
            .await?;
        settled(found)
    }

    /// Makes or changes profiles; the results are in the order of `users`.
    pub async fn upsert_users(&self, users: Vec<UserUpdate>) -> Result<Vec<UpsertResult>, Error> {
        let items: Vec<_> = users.into_iter().enumerate().collect();
        let count = items.len();
        let found = self
            .batch(
                items,
                |(_, u)| u.user_id.as_str(),
                |transport, items| async move {
                    let users = items.iter().map(|(_, u)| u.clone()).collect();
                    let response =
                        UsersClient::new(transport).upsert_users(timed(UpsertUsersRequest { users })).await?;
                    let results = response.into_inner().results;
                    if results.len() != items.len() {
                        return Err(Error::internal("storage answered another number of users than asked").into());
                    }
                    let settle = |(item, result): ((usize, UserUpdate), UpsertResult)| match result.error {
                        Some(error) => Settled::Failed(item, error.into()),
                        None => Settled::Done((item.0, result)),
                    };
                    Ok(items.into_iter().zip(results).map(settle).collect())
                },
            )
            .await?;
        let mut results: Vec<UpsertResult> = std::iter::repeat_with(UpsertResult::default).take(count).collect();
        for item in found {
            match item {
                Settled::Done((at, result)) => results[at] = result,
                Settled::Failed((at, _), error) => results[at].error = Some(error.into()),
            }
        }
        Ok(results)
    }

    /// The messages after each position, as `user_id` may see them; in the order of `after`. An item's own failure is in the item. All together
    /// weigh no more than one answer may: where that ends a page early it says that there is more. At least one message comes, if any may.
    pub async fn list_after(
        &self,
        user_id: &str,
        after: Vec<Position>,
        limit: u32,
    ) -> Result<Vec<ConversationMessages>, Error> {
        let mut found = self.list_after_shared(user_id, after.clone(), limit).await?;
        let nothing = found.iter().all(|f| f.messages.is_empty());
        if after.len() > 1
            && nothing
            && let Some(at) = found.iter().position(|f| f.has_more)
        {
            // Every first one takes more than its share.
            found[at] = self.list_after_shared(user_id, vec![after[at].clone()], limit).await?.remove(0);
        }
        Ok(found)
    }

    async fn list_after_shared(
        &self,
        user_id: &str,
        after: Vec<Position>,
        limit: u32,
    ) -> Result<Vec<ConversationMessages>, Error> {
        let items: Vec<_> = after.into_iter().enumerate().collect();
        let count = items.len();
        let found = self
            .batch(
                items,
                |(_, p)| p.conversation_id.as_str(),
                |transport, items| async move {
                    let after = items.iter().map(|(_, p)| p.clone()).collect();
                    let bytes = (PAGE_BYTES * items.len() / count) as u32;
                    let request = ListAfterRequest { user_id: user_id.to_owned(), after, limit, bytes };
                    let mut client = MessagesClient::new(transport).max_decoding_message_size(MAX_MESSAGE_BYTES);
                    let mut answers = client.list_after(timed(request)).await?.into_inner().conversations;
                    let settle = |item: (usize, Position)| {
                        let answer = answers.iter().position(|a| a.conversation_id == item.1.conversation_id);
                        match answer.map(|at| answers.swap_remove(at)) {
                            Some(ConversationMessages { error: Some(error), .. }) => {
                                Settled::Failed(item, error.into())
                            }
                            Some(answer) => Settled::Done((item.0, answer)),
                            None => Settled::Failed(item, Error::not_found("no such conversation")),
                        }
                    };
                    Ok(items.into_iter().map(settle).collect())
                },
            )
            .await?;
        let mut results: Vec<_> = std::iter::repeat_with(ConversationMessages::default).take(count).collect();
        for item in found {
            match item {
                Settled::Done((at, answer)) => results[at] = answer,
                Settled::Failed((at, position), error) => {
                    results[at].conversation_id = position.conversation_id;
                    results[at].error = Some(error.into());
                }
            }
        }
        Ok(results)
    }

    /// Heads of conversations as `user_id` sees them (empty: a trusted caller), in no order; those it may not see are left out. The error of
    /// one that cannot be read is that of the call.
    pub async fn get_conversations(
        &self,
        user_id: &str,
        conversation_ids: Vec<String>,
        with_last_message: bool,
    ) -> Result<Vec<Conversation>, Error> {
        let found = self
            .batch(conversation_ids, String::as_str, |transport, conversation_ids| async move {
                let user_id = user_id.to_owned();
                let request = GetConversationsRequest { user_id, conversation_ids, with_last_message };
                let mut client = ConversationsClient::new(transport).max_decoding_message_size(MAX_MESSAGE_BYTES);
                let response = client.get_conversations(timed(request)).await?.into_inner();
                let settle = |mut conversation: Conversation| match conversation.error.take() {
                    Some(error) => Settled::Failed(conversation.conversation_id, error.into()),
                    None => Settled::Done(conversation),
                };
                Ok(response.conversations.into_iter().map(settle).collect())
            })
            .await?;
        settled(found)
    }

    /// Moves delivered cursors of a device forward.
    pub async fn ack(&self, user_id: &str, device_id: &str, acks: Vec<Position>) -> Result<AckResponse, Error> {
        let found = self
            .batch(
                acks,
                |p| p.conversation_id.as_str(),
                |transport, acks| async move {
                    let (user_id, device_id) = (user_id.to_owned(), device_id.to_owned());
                    let request = AckRequest { user_id, device_id, acks: acks.clone() };
                    let response = ConversationsClient::new(transport).ack(timed(request)).await?.into_inner();
                    let failed = response.errors.into_iter().filter_map(|failed| {
                        let at = acks.iter().find(|a| a.conversation_id == failed.conversation_id)?;
                        Some(Settled::Failed(at.clone(), failed.error.unwrap_or_default().into()))
                    });
                    Ok(response.delivered.into_iter().map(Settled::Done).chain(failed).collect())
                },
            )
            .await?;
        let mut response = AckResponse::default();
        for item in found {
            match item {
                Settled::Done(position) => response.delivered.push(position),
                Settled::Failed(position, error) => response
                    .errors
                    .push(AckError { conversation_id: position.conversation_id, error: Some(error.into()) }),
            }
        }
        Ok(response)
    }
}
