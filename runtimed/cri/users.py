"""Who a container runs as: the request, else the image; names and groups from the image's files."""

from runtimed import passwd
from runtimed.api import cri_pb2 as pb
from runtimed.cri.request import ContainerSpecRequest
from runtimed.errors import InvalidArgument
from runtimed.oci.runtime_spec import User


def user_of(request: ContainerSpecRequest) -> User:
    """Return the user, with its primary group as the first of the further groups (CVE-2022-36109). Blocks.

    With the policy Merge, a user's groups in the image's etc/group are added to those of the request.

    Raises:
        InvalidArgument: run_as_group without a user, a number that is none, a file that would not be read.
        NotFound: no such user or group in the image.
    """
    context = request.config.linux.security_context
    user, group = _asked(context, request.image.user or "")
    accounts = request.rootfs.accounts()
    account = accounts.user(user)
    gid = account.gid if group is None else accounts.group(group)
    further = {_number(id, "supplemental group") for id in context.supplemental_groups}
    if context.supplemental_groups_policy != pb.SupplementalGroupsPolicy.Strict:
        further.update(accounts.further_groups(account))
    return User(uid=account.uid, gid=gid, additional_gids=(gid, *sorted(further - {gid})))


def _asked(context: pb.LinuxContainerSecurityContext, of_image: str) -> tuple[int | str, int | str | None]:
    """Return user and group; a number wins over a name, and either over the image's."""
    user: int | str
    if context.HasField("run_as_user"):
        user, group = _number(context.run_as_user.value, "run_as_user"), None
    elif context.run_as_username:
        user, group = passwd.parse(context.run_as_username)
    elif context.HasField("run_as_group"):
        raise InvalidArgument("run_as_group needs run_as_user or run_as_username")
    else:
        user, group = passwd.parse(of_image) if of_image else (0, None)
    if context.HasField("run_as_group"):
        group = _number(context.run_as_group.value, "run_as_group")
    return user, group


def _number(id: int, what: str) -> int:
    if not 0 <= id <= passwd.MAX_ID:
        raise InvalidArgument(f"{what} {id} is not between 0 and {passwd.MAX_ID}")
    return id
