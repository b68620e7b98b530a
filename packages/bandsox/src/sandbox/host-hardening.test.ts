import assert from 'node:assert/strict'
import { mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { examineHardening } from './host-hardening.js'

const FLAWS = 'sys/devices/system/cpu/vulnerabilities'

/** A host that is set up as is recommended. */
const good: Record<string, string> = {
  'sys/devices/system/cpu/smt/active': '0\n',
  'sys/devices/system/cpu/smt/control': 'off\n',
  'sys/kernel/mm/ksm/run': '0\n',
  'sys/kernel/mm/ksm/pages_sharing': '0\n',
  'proc/swaps': 'Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n',
  'proc/cmdline': 'BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet\n',
  'proc/cpuinfo': 'processor\t: 0\nvendor_id\t: GenuineIntel\nmicrocode\t: 0x2b0\nflags\t\t: fpu vme\n',
  [`${FLAWS}/meltdown`]: 'Not affected\n',
  [`${FLAWS}/mds`]: 'Mitigation: Clear CPU buffers; SMT disabled\n',
  [`${FLAWS}/itlb_multihit`]: 'Not affected\n',
  [`${FLAWS}/old_microcode`]: 'Not affected\n',
  'sys/module/kvm/parameters/nx_huge_pages': 'never\n',
  'sys/module/kvm/parameters/min_timer_period_us': '200\n',
  'sys/fs/cgroup/cgroup.controllers': 'cpuset cpu io memory hugetlb pids rdma misc\n',
  'proc/mounts': 'cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,favordynmods 0 0\n',
  'proc/sys/kernel/osrelease': '6.1.0-18-amd64\n',
  'sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages': '0\n',
  'sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages': '0\n',
  'sys/kernel/mm/transparent_hugepage/enabled': 'always [madvise] never\n',
  'proc/sys/kernel/printk': '1\t4\t1\t7\n',
  'sys/class/tty/console/active': 'tty0 ttyS0\n',
}

/** @param changes Files that are other, or (undefined) not there. */
async function examine(t: TestScope, changes: Record<string, string | undefined> = {}) {
  const root = await temporaryFolder(t)
  for (const [name, content] of Object.entries({ ...good, ...changes })) {
    if (content === undefined) continue
    await mkdir(path.dirname(path.join(root, name)), { recursive: true })
    await writeFile(path.join(root, name), content)
  }
  return await examineHardening(root)
}

const swaps = (...areas: string[]) =>
  ['Filename Type Size Used Priority', ...areas.map((area) => `${area}\tpartition\t1000\t0\t-2`)].join('\n')

describe('a host', () => {
  it('that is set up as is recommended gets no advice', async (t) => {
    const found = await examine(t)
    assert.deepEqual(
      found.filter(({ verdict, hint }) => verdict !== 'ok' || hint !== undefined),
      [],
    )
    assert.equal(found.length, 10)
  })

  it('that shows nothing, as a container may, gets none but for control groups', async (t) => {
    const root = await temporaryFolder(t)
    const advised = (await examineHardening(root)).filter(({ verdict }) => verdict === 'advice')
    assert.deepEqual(
      advised.map(({ subject }) => subject),
      ['cgroups'],
    )
  })

  it('that this test runs on can be read', async () => {
    for (const { found, verdict, hint } of await examineHardening()) {
      assert.notEqual(found, '')
      assert.equal(hint !== undefined, verdict === 'advice', found)
    }
  })

  const cases: [
    what: string,
    subject: string,
    changes: Record<string, string | undefined>,
    found: RegExp,
    hint?: RegExp,
  ][] = [
    [
      'with SMT',
      'smt',
      { 'sys/devices/system/cpu/smt/active': '1', 'sys/devices/system/cpu/smt/control': 'on' },
      /^on/,
      /^echo off > \/sys\/devices/,
    ],
    [
      'with SMT of an outer host',
      'smt',
      { 'sys/devices/system/cpu/smt/active': '1', 'sys/devices/system/cpu/smt/control': 'notsupported' },
      /^on/,
      /firmware/,
    ],
    [
      'with merged pages',
      'ksm',
      { 'sys/kernel/mm/ksm/run': '1', 'sys/kernel/mm/ksm/pages_sharing': '12' },
      /^on, 12 pages/,
      /^echo 2 > \/sys\/kernel\/mm\/ksm\/run/,
    ],
    ['with pages that stayed merged', 'ksm', { 'sys/kernel/mm/ksm/pages_sharing': '3' }, /^off, 3 pages/, /^echo 2 >/],
    ['that unmerges', 'ksm', { 'sys/kernel/mm/ksm/run': '2', 'sys/kernel/mm/ksm/pages_sharing': undefined }, /^off/],
    [
      'with swap on a disk',
      'swap',
      { 'proc/swaps': swaps('/dev/sda2') },
      /^\/dev\/sda2: memory/,
      /^swapoff \/dev\/sda2;/,
    ],
    [
      'with swap in a file with a space',
      'swap',
      { 'proc/swaps': swaps('/my\\040swap') },
      /my\\040swap/,
      /^swapoff '\/my swap';/,
    ],
    ['with swap in memory', 'swap', { 'proc/swaps': swaps('/dev/zram0') }, /^\/dev\/zram0, in memory only/],
    [
      'with zram that writes to a disk',
      'swap',
      { 'proc/swaps': swaps('/dev/zram0'), 'sys/block/zram0/backing_dev': '/dev/sdb' },
      /^\/dev\/zram0: memory/,
      /^swapoff \/dev\/zram0/,
    ],
    [
      'with zram that could',
      'swap',
      { 'proc/swaps': swaps('/dev/zram0'), 'sys/block/zram0/backing_dev': 'none' },
      /in memory only/,
    ],
    [
      'with zram and a disk',
      'swap',
      { 'proc/swaps': swaps('/dev/zram0', '/dev/sda2') },
      /^\/dev\/sda2: /,
      /^swapoff \/dev\/sda2;/,
    ],
    [
      'with an open flaw',
      'cpu flaws',
      { [`${FLAWS}/mds`]: 'Vulnerable: Clear CPU buffers attempted, no microcode' },
      /^open: mds$/,
      /update kernel and microcode/,
    ],
    [
      'with a flaw that is open in part',
      'cpu flaws',
      { [`${FLAWS}/spectre_v2`]: 'Mitigation: Enhanced IBRS; BHI: Vulnerable' },
      /^open: spectre_v2$/,
      /update/,
    ],
    [
      'with a flaw that KVM leaves open',
      'cpu flaws',
      { [`${FLAWS}/itlb_multihit`]: 'KVM: Vulnerable' },
      /^open: itlb_multihit$/,
      /update/,
    ],
    [
      'with mitigations switched off',
      'cpu flaws',
      { [`${FLAWS}/mds`]: 'Vulnerable', 'proc/cmdline': 'root=/dev/sda1 mitigations=off' },
      /^open: mds$/,
      /^take mitigations=off/,
    ],
    [
      'with a flaw that SMT opens',
      'cpu flaws',
      { [`${FLAWS}/l1tf`]: 'Mitigation: PTE Inversion; VMX: SMT vulnerable' },
      /^open with SMT: l1tf$/,
      /mitigations=auto,nosmt/,
    ],
    [
      'with a flaw that only the outer host knows',
      'cpu flaws',
      { [`${FLAWS}/srbds`]: 'Unknown: Dependent on hypervisor status' },
      /outer host alone: srbds/,
      /update/,
    ],
    [
      'without a list of flaws',
      'cpu flaws',
      { [`${FLAWS}/mds`]: undefined, [`${FLAWS}/meltdown`]: undefined },
      /none is open/,
    ],
    [
      'with old microcode',
      'microcode',
      { [`${FLAWS}/old_microcode`]: 'Vulnerable' },
      /0x2b0, older than/,
      /apt-get install intel-microcode/,
    ],
    [
      'of AMD, whose kernel cannot tell',
      'microcode',
      { [`${FLAWS}/old_microcode`]: undefined, 'proc/cpuinfo': 'vendor_id\t: AuthenticAMD\nmicrocode\t: 0xa1\n' },
      /cannot tell/,
      /amd64-microcode/,
    ],
    [
      'that is a virtual machine',
      'microcode',
      { [`${FLAWS}/old_microcode`]: undefined, 'proc/cpuinfo': 'microcode\t: 0x1\nflags\t\t: fpu hypervisor sse\n' },
      /outer host/,
    ],
    [
      'that pays for a flaw that it does not have',
      'nx pages',
      { 'sys/module/kvm/parameters/nx_huge_pages': 'Y' },
      /does not need it/,
      /^echo "options kvm nx_huge_pages=never" >/,
    ],
    [
      'that has iTLB multihit, and is open to it',
      'nx pages',
      { 'sys/module/kvm/parameters/nx_huge_pages': 'N', [`${FLAWS}/itlb_multihit`]: 'KVM: Vulnerable' },
      /can stop the host/,
      /^echo auto >/,
    ],
    [
      'that has iTLB multihit, for good',
      'nx pages',
      { 'sys/module/kvm/parameters/nx_huge_pages': 'never', [`${FLAWS}/itlb_multihit`]: 'KVM: Vulnerable' },
      /can stop the host/,
      /reboot/,
    ],
    [
      'that has iTLB multihit, and is closed to it',
      'nx pages',
      {
        'sys/module/kvm/parameters/nx_huge_pages': 'Y',
        [`${FLAWS}/itlb_multihit`]: 'KVM: Mitigation: Split huge pages',
      },
      /^Y$/,
    ],
    ['without kvm', 'nx pages', { 'sys/module/kvm/parameters/nx_huge_pages': undefined }, /kvm is not loaded/],
    [
      'with faster timers',
      'kvm timer',
      { 'sys/module/kvm/parameters/min_timer_period_us': '50' },
      /20000 interrupts/,
      /min_timer_period_us=200/,
    ],
    ['with slower timers', 'kvm timer', { 'sys/module/kvm/parameters/min_timer_period_us': '1000' }, /1000 interrupts/],
    [
      'with control groups of version 1',
      'cgroups',
      { 'sys/fs/cgroup/cgroup.controllers': undefined },
      /not mounted/,
      /systemd.unified_cgroup_hierarchy=1/,
    ],
    [
      'without a controller',
      'cgroups',
      { 'sys/fs/cgroup/cgroup.controllers': 'cpu io pids' },
      /without memory$/,
      /cgroup_disable=/,
    ],
    [
      'without favordynmods',
      'cgroups',
      { 'proc/mounts': 'cgroup2 /sys/fs/cgroup cgroup2 rw 0 0' },
      /without favordynmods/,
      /^mount -o remount,favordynmods/,
    ],
    [
      'with a kernel that needs no favordynmods',
      'cgroups',
      { 'proc/mounts': 'cgroup2 /sys/fs/cgroup cgroup2 rw 0 0', 'proc/sys/kernel/osrelease': '5.10.0' },
      /^version 2$/,
    ],
    [
      'with huge pages',
      'huge pages',
      { 'sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages': '512' },
      /^512 of 2 MiB reserved, 0 free; transparent: madvise/,
    ],
    [
      'that talks on a serial line',
      'console',
      { 'proc/sys/kernel/printk': '7 4 1 7' },
      /level 7 .* ttyS0:/,
      /^dmesg -n 1;/,
    ],
    [
      'that talks on a screen',
      'console',
      { 'proc/sys/kernel/printk': '7 4 1 7', 'sys/class/tty/console/active': 'tty0' },
      /level 7, on tty0/,
    ],
  ]
  for (const [what, subject, changes, found, hint] of cases) {
    it(`${what} is ${hint === undefined ? 'well' : 'advised'}`, async (t) => {
      const row = (await examine(t, changes)).find((each) => each.subject === subject) ?? assert.fail()
      assert.match(row.found, found)
      assert.equal(row.verdict, hint === undefined ? 'ok' : 'advice', row.found)
      if (hint === undefined) assert.equal(row.hint, undefined)
      else assert.match(row.hint ?? '', hint)
    })
  }
})
