//! `kith.storage.v1.Conversations`.

use kith_proto::storage::v1::{
    AckRequest, AckResponse, AddMembersRequest, AddMembersResponse, ClearRequest, ClearResponse,
    CreateConversationRequest, CreateConversationResponse, DissolveRequest, DissolveResponse, GetConversationsRequest,
    GetConversationsResponse, GetReceiptsRequest, GetReceiptsResponse, GetVersionRequest, GetVersionResponse,
    ListBehindRequest, ListBehindResponse, ListConversationsRequest, ListConversationsResponse, ListMembersRequest,
    ListMembersResponse, MarkReadRequest, MarkReadResponse, OpenDirectRequest, OpenDirectResponse,
    RemoveMembersRequest, RemoveMembersResponse, SetListEntryRequest, SetListEntryResponse, UpdateConversationRequest,
    UpdateConversationResponse, UpdateMemberRequest, UpdateMemberResponse, conversations_server::Conversations,
};

use super::service;
use crate::core::Core;

pub(super) struct Service(pub(super) Core);

service! {
    Conversations for Service {}
    open_direct(OpenDirectRequest) -> OpenDirectResponse { |r| r }
    create_conversation(CreateConversationRequest) -> CreateConversationResponse { |r| r }
    update_conversation(UpdateConversationRequest) -> UpdateConversationResponse { |c| UpdateConversationResponse { conversation: Some(c) } }
    dissolve(DissolveRequest) -> DissolveResponse { |()| DissolveResponse {} }
    get_conversations(GetConversationsRequest) -> GetConversationsResponse { |conversations| GetConversationsResponse { conversations } }
    list_conversations(ListConversationsRequest) -> ListConversationsResponse { |r| r }
    set_list_entry(SetListEntryRequest) -> SetListEntryResponse { |()| SetListEntryResponse {} }
    clear(ClearRequest) -> ClearResponse { |r| r }
    mark_read(MarkReadRequest) -> MarkReadResponse { |r| r }
    ack(AckRequest) -> AckResponse { |r| r }
    list_behind(ListBehindRequest) -> ListBehindResponse { |r| r }
    get_receipts(GetReceiptsRequest) -> GetReceiptsResponse { |r| r }
    add_members(AddMembersRequest) -> AddMembersResponse { |r| r }
    remove_members(RemoveMembersRequest) -> RemoveMembersResponse { |r| r }
    update_member(UpdateMemberRequest) -> UpdateMemberResponse { |m| UpdateMemberResponse { member: Some(m) } }
    get_version(GetVersionRequest) -> GetVersionResponse { |r| r }
    list_members(ListMembersRequest) -> ListMembersResponse { |r| r }
}
