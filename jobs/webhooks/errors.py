"""The errors of webhooks. ``jobs.kit.errors`` shows the rest of the tree.

NotFound                    404
├── WebhookNotFound             webhook_not_found
└── DeliveryNotFound            delivery_not_found
QuantryError
└── TooManyWebhooks         409 quota_exceeded
"""

from jobs.kit.errors import NotFound, QuantryError


class WebhookNotFound(NotFound):
    """No webhook endpoint of this tenant has the id."""

    code = "webhook_not_found"
    title = "Webhook not found"

    def __init__(self) -> None:
        super().__init__("There is no webhook with this id. List yours with GET /v1/webhooks.")


class DeliveryNotFound(NotFound):
    """The endpoint has no delivery with this id, or it was deleted after its retention time."""

    code = "delivery_not_found"
    title = "Delivery not found"

    def __init__(self) -> None:
        super().__init__(
            "There is no delivery with this id. A webhook lists its own under /v1/webhooks/{id}/deliveries."
        )


class TooManyWebhooks(QuantryError):
    """The tenant has as many endpoints as a tenant may have."""

    status = 409
    code = "quota_exceeded"
    title = "Too many webhooks"

    def __init__(self, limit: int) -> None:
        super().__init__(f"There are {limit} webhooks already, which is the maximum. Delete one first.")
