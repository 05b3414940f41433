"""Ports of hosts that have no agent.

Neutron lets a driver bind a port to a host, and an agent there says when it is plugged in. The hosts
whose names begin with "fake" have no agent, so this driver does both at once. Floating IPs change
their status likewise, as long as no L3 agent lives that would do it.
"""

from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.callbacks import events, registry, resources
from neutron_lib.plugins import constants as plugins
from neutron_lib.plugins import directory
from neutron_lib.plugins.ml2 import api


class AgentlessPorts(api.MechanismDriver):
    def initialize(self):
        for event in (events.AFTER_CREATE, events.AFTER_UPDATE):
            registry.subscribe(self.floating_ip_changed, resources.FLOATING_IP, event)

    def bind_port(self, context):
        if not (context.host or "").startswith("fake"):
            return
        for segment in context.segments_to_bind[:1]:
            context.set_binding(
                segment[api.ID],
                portbindings.VIF_TYPE_BRIDGE,
                {portbindings.CAP_PORT_FILTER: True},
                status=constants.PORT_STATUS_ACTIVE,
            )

    def floating_ip_changed(self, resource, event, trigger, payload=None):
        l3 = directory.get_plugin(plugins.L3)
        context = payload.context.elevated()
        now = payload.latest_state or {}
        floating_ip = payload.resource_id or now.get("id")
        if not floating_ip or not l3 or l3.get_l3_agents(context, active=True):
            return
        used = now.get("fixed_port_id") or now.get("port_id")
        status = constants.FLOATINGIP_STATUS_ACTIVE if used else constants.FLOATINGIP_STATUS_DOWN
        l3.update_floatingip_status(context, floating_ip, status)
