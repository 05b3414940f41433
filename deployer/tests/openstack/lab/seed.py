"""Makes what a new cloud has none of: users and the catalog, then flavors, images and a public network.

    seed.py identity     as soon as Keystone answers; writes clouds.yaml
    seed.py resources    when all services answer

Everything is looked for before it is made.
"""

import json
import os
import pathlib
import sys

import openstack

ETC = pathlib.Path(os.environ["LAB_ETC"])
REGION = os.environ["LAB_REGION"]
PASSWORD = os.environ["LAB_PASSWORD"]


def url(service):
    return "{}:{}".format(os.environ["LAB_URL"], os.environ["LAB_" + service])


def login(user, project):
    return {
        "auth_url": url("KEYSTONE") + "/v3",
        "username": user,
        "password": PASSWORD,
        "project_name": project,
        "user_domain_name": "Default",
        "project_domain_name": "Default",
    }


def connect(user, project):
    return openstack.connect(auth=login(user, project), region_name=REGION, interface="public")


def identity():
    api = connect("admin", "admin").identity
    domain = api.find_domain("Default") or api.find_domain("default")
    roles = {role.name: role for role in api.roles()}
    if "service" not in roles:
        roles["service"] = api.create_role(name="service")

    def project(name):
        return api.find_project(name) or api.create_project(name=name, domain_id=domain.id)

    def user(name, project, wanted):
        found = api.find_user(name) or api.create_user(
            name=name, password=PASSWORD, domain_id=domain.id, default_project_id=project.id
        )
        for role in wanted:
            api.assign_project_role_to_user(project, found, roles[role])

    services = project("service")
    for name in ("glance", "placement", "nova", "neutron"):
        user(name, services, ("admin", "service"))
    # Whom the tests log in as.
    user("demo", project("demo"), ("member", "reader"))

    catalog = {
        "image": ("glance", url("GLANCE")),
        "placement": ("placement", url("PLACEMENT")),
        "compute": ("nova", url("NOVA") + "/v2.1"),
        "network": ("neutron", url("NEUTRON")),
    }
    there = {service.type: service for service in api.services()}
    for kind, (name, address) in catalog.items():
        service = there.get(kind) or api.create_service(name=name, type=kind)
        if not list(api.endpoints(service_id=service.id)):
            for interface in ("public", "internal", "admin"):
                api.create_endpoint(
                    service_id=service.id, interface=interface, url=address, region_id=REGION
                )
    write_clouds(credential())


def credential():
    """The id and the secret of an application credential of demo. The secret is told only once."""
    kept = ETC / "credential.json"
    if not kept.exists():
        demo = connect("demo", "demo")
        body = {"application_credential": {"name": "lab-" + os.urandom(4).hex(), "unrestricted": True}}
        path = "/users/{}/application_credentials".format(demo.current_user_id)
        made = demo.identity.post(path, json=body)
        made.raise_for_status()
        made = made.json()["application_credential"]
        write(kept, json.dumps({"id": made["id"], "secret": made["secret"]}))
    return json.loads(kept.read_text())


def write(path, text):
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.rename(path)


def write_clouds(credential):
    common = {"region_name": REGION, "interface": "public", "identity_api_version": 3}
    clouds = {
        "lab": {**common, "auth": login("demo", "demo")},
        "lab-admin": {**common, "auth": login("admin", "admin")},
        "lab-appcred": {
            **common,
            "auth_type": "v3applicationcredential",
            "auth": {
                "auth_url": url("KEYSTONE") + "/v3",
                "application_credential_id": credential["id"],
                "application_credential_secret": credential["secret"],
            },
        },
    }
    # JSON is YAML.
    write(ETC / "clouds.yaml", json.dumps({"clouds": clouds}, indent=2) + "\n")
    metadata = {"url": url("METADATA"), "secret": os.environ["LAB_METADATA_SECRET"]}
    write(ETC / "metadata.json", json.dumps(metadata) + "\n")


FLAVORS = {
    # No flavor without a disk: Nova keeps those for administrators.
    "lab.tiny": (1, 512, 1),
    "lab.small": (1, 1024, 4),
    "lab.medium": (2, 2048, 8),
    "lab.large": (4, 8192, 20),
}


def resources():
    cloud = connect("admin", "admin")
    for name, (vcpus, ram, disk) in FLAVORS.items():
        cloud.compute.find_flavor(name) or cloud.compute.create_flavor(
            name=name, vcpus=vcpus, ram=ram, disk=disk
        )
    if not cloud.image.find_image("lab-blank"):
        blank = ETC / "blank.img"
        blank.write_bytes(bytes(65536))
        cloud.create_image(
            "lab-blank",
            filename=str(blank),
            disk_format="raw",
            container_format="bare",
            visibility="public",
            wait=True,
        )
    public = os.environ["LAB_PUBLIC"]
    network = cloud.network.find_network("public") or cloud.network.create_network(
        name="public",
        is_router_external=True,
        is_shared=False,
        provider_network_type="flat",
        provider_physical_network="public",
    )
    cloud.network.find_subnet("public-v4") or cloud.network.create_subnet(
        network_id=network.id,
        name="public-v4",
        ip_version=4,
        cidr=public + ".0/24",
        gateway_ip=public + ".1",
        enable_dhcp=False,
        allocation_pools=[{"start": public + ".50", "end": public + ".199"}],
    )
    if os.environ["LAB_MODE"] != "fake":
        guest_image(cloud)
    if os.environ["LAB_MODE"] == "both":
        real_zone(cloud)


def guest_image(cloud):
    """Uploads the image of real guests, again when it was built again."""
    folder = pathlib.Path(os.environ["LAB_IMAGE"])
    disk = folder / "debian.qcow2"
    if not disk.exists():
        print("no guest image yet: `lab image` makes it")
        return
    built = str(disk.stat().st_mtime_ns)
    there = cloud.image.find_image("debian-12")
    if there and (there.properties or {}).get("lab_built") == built:
        return
    for name in ("debian-12", "debian-kernel", "debian-initrd"):
        for image in cloud.image.images(name=name):
            cloud.image.delete_image(image)

    def upload(name, file, kind, container, **more):
        return cloud.create_image(
            name,
            filename=str(folder / file),
            disk_format=kind,
            container_format=container,
            visibility="public",
            wait=True,
            **more,
        ).id

    kernel = upload("debian-kernel", "vmlinuz", "aki", "aki")
    initrd = upload("debian-initrd", "initrd.img", "ari", "ari")
    upload(
        "debian-12",
        "debian.qcow2",
        "qcow2",
        "bare",
        min_disk=3,
        min_ram=512,
        kernel_id=kernel,
        ramdisk_id=initrd,
        # The guest has no AppArmor programs, without which Docker starts no container where the
        # kernel has AppArmor.
        os_command_line="root=/dev/vda ro console=ttyS0 quiet apparmor=0",
        # The configuration drive on IDE would be seen too late by this kernel, or not at all.
        hw_cdrom_bus="scsi",
        hw_scsi_model="virtio-scsi",
        hw_machine_type="pc",
        hw_rng_model="virtio",
        lab_built=built,
    )


def real_zone(cloud):
    """The host of real servers gets a zone of its own, so that nothing lands there unasked."""
    zone = cloud.compute.find_aggregate("real") or cloud.compute.create_aggregate(
        name="real", availability_zone="real"
    )
    if "lab" not in (zone.hosts or []):
        cloud.compute.add_host_to_aggregate(zone, "lab")


{"identity": identity, "resources": resources}[sys.argv[1]]()
