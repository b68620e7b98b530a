/** What the environment and some files have to say to every command, for the manual; see config.ts, which reads them. */

export interface Described {
  name: string
  meaning: string
}

export const environmentVariables: readonly Described[] = [
  { name: 'BANDSOX_STORAGE', meaning: 'folder of all state, where --storage does not name another' },
  { name: 'BANDSOX_CONFIG', meaning: 'file of registries and limits, in place of ~/.config/bandsox/config.json' },
  { name: 'BANDSOX_VMM', meaning: 'auto, firecracker or qemu, where --vmm does not say' },
  { name: 'BANDSOX_JAIL', meaning: 'auto, on or off: whether Firecracker is jailed, where --jailer does not say' },
  { name: 'BANDSOX_FIRECRACKER', meaning: 'firecracker to use, in place of the one that init has fetched' },
  { name: 'BANDSOX_JAILER', meaning: 'jailer to use, in place of the one that init has fetched' },
  { name: 'BANDSOX_TEMPLATES', meaning: 'on or off: whether create starts from templates, and has them made' },
  { name: 'BANDSOX_LOG_LEVEL', meaning: 'what to log, where --log-level does not say' },
  { name: 'BANDSOX_DISK_BANDWIDTH_MBPS', meaning: 'disk bandwidth of new VMs in MiB/s, 0 for no limit (default: 200)' },
  { name: 'BANDSOX_DISK_IOPS', meaning: 'disk operations per second of new VMs, 0 for no limit (default: 5000)' },
  { name: 'XDG_DATA_HOME', meaning: 'folder that stands for ~/.local/share' },
  { name: 'XDG_CONFIG_HOME', meaning: 'folder that stands for ~/.config' },
  {
    name: 'XDG_CACHE_HOME',
    meaning: 'folder that stands for ~/.cache; the vsock daemon that the set-up has built is in it',
  },
  { name: 'XDG_RUNTIME_DIR', meaning: 'folder in which podman keeps the credentials of a session' },
  { name: 'DOCKER_CONFIG', meaning: 'folder that stands for ~/.docker' },
  { name: 'PATH', meaning: 'where QEMU and other programs of the host are looked for' },
  {
    name: 'http_proxy, HTTP_PROXY',
    meaning: 'URL of the proxy for registries, and for what init fetches, without TLS',
  },
  { name: 'https_proxy, HTTPS_PROXY', meaning: 'URL of the proxy for registries, and for what init fetches' },
  { name: 'no_proxy, NO_PROXY', meaning: 'hosts that are reached without a proxy' },
]

export const files: readonly Described[] = [
  { name: '/var/lib/bandsox', meaning: 'all state, for root' },
  { name: '~/.local/share/bandsox', meaning: 'all state, for other users' },
  {
    name: '~/.config/bandsox/config.json',
    meaning: 'registries, limits of images, room for them, memory that VMs may have together',
  },
  { name: '~/.config/bandsox/auth.json', meaning: 'credentials that bandsox login keeps' },
  { name: '~/.docker/config.json', meaning: 'credentials of docker, which are used as well' },
  { name: '~/.config/containers/auth.json', meaning: 'credentials of podman, which are used as well' },
]
