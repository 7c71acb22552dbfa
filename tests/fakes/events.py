"""A publisher that remembers: stands in for the event bus where a test asks what was published."""

from google.protobuf.message import Message


class RecordedEvents:
    """What was published, in order."""

    def __init__(self) -> None:
        self.published: list[tuple[str, str, Message]] = []

    def publish(self, namespace: str, topic: str, message: Message) -> None:
        self.published.append((namespace, topic, message))

    @property
    def topics(self) -> list[str]:
        return [topic for _, topic, _ in self.published]
