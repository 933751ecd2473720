//! `kith.storage.v1.Users`.

use kith_proto::storage::v1::{
    AnswerFriendRequestRequest, AnswerFriendRequestResponse, DeleteDeviceRequest, DeleteDeviceResponse,
    DeleteFriendRequest, DeleteFriendResponse, GetRevocationRequest, GetRevocationResponse, GetUsersRequest,
    GetUsersResponse, ListBlocksRequest, ListBlocksResponse, ListDevicesRequest, ListDevicesResponse,
    ListFriendRequestsRequest, ListFriendRequestsResponse, ListFriendsRequest, ListFriendsResponse, PutDeviceRequest,
    PutDeviceResponse, PutFriendRequest, PutFriendResponse, RequestFriendRequest, RequestFriendResponse,
    RevokeTokensRequest, RevokeTokensResponse, SetBlockRequest, SetBlockResponse, UpsertUsersRequest,
    UpsertUsersResponse, users_server::Users,
};
use tonic::{Request, Response, Status};

use super::{respond, service};
use crate::core::Core;

pub(super) struct Service(pub(super) Core);

service! {
    Users for Service {
        async fn list_devices(&self, request: Request<ListDevicesRequest>) -> Result<Response<ListDevicesResponse>, Status> {
            let outcome = self.0.list_devices(&request.into_inner().user_id).await;
            respond("list_devices", outcome.map(|devices| ListDevicesResponse { devices }))
        }

        async fn get_revocation(&self, request: Request<GetRevocationRequest>) -> Result<Response<GetRevocationResponse>, Status> {
            respond("get_revocation", self.0.get_revocation(request.into_inner()).await)
        }
    }
    upsert_users(UpsertUsersRequest) -> UpsertUsersResponse { |r| r }
    get_users(GetUsersRequest) -> GetUsersResponse { |r| r }
    list_friends(ListFriendsRequest) -> ListFriendsResponse { |r| r }
    put_friend(PutFriendRequest) -> PutFriendResponse { |changed| PutFriendResponse { changed } }
    delete_friend(DeleteFriendRequest) -> DeleteFriendResponse { |changed| DeleteFriendResponse { changed } }
    request_friend(RequestFriendRequest) -> RequestFriendResponse { |()| RequestFriendResponse {} }
    list_friend_requests(ListFriendRequestsRequest) -> ListFriendRequestsResponse { |r| r }
    answer_friend_request(AnswerFriendRequestRequest) -> AnswerFriendRequestResponse { |()| AnswerFriendRequestResponse {} }
    set_block(SetBlockRequest) -> SetBlockResponse { |changed| SetBlockResponse { changed } }
    list_blocks(ListBlocksRequest) -> ListBlocksResponse { |r| r }
    put_device(PutDeviceRequest) -> PutDeviceResponse { |()| PutDeviceResponse {} }
    delete_device(DeleteDeviceRequest) -> DeleteDeviceResponse { |changed| DeleteDeviceResponse { changed } }
    revoke_tokens(RevokeTokensRequest) -> RevokeTokensResponse { |()| RevokeTokensResponse {} }
}
