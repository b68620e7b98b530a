/**
 * An image as a developer's own: Debian with Python, an application over it, and then layers with everything that layers can
 * do to the ones below: remove, replace by another type, make opaque, change modes, owners, links and attributes.
 */
import {
  appendFile,
  chmod,
  chown,
  copyFile,
  lchown,
  link,
  mkdir,
  open,
  rm,
  symlink,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises'
import path from 'node:path'
import { hostAptSource } from './apt-source.js'
import type { ImageRecipe } from './image-recipe.js'
import { runTool } from './test-tools.js'
import { addLayer, addLayerAsItIs, configureImage, umociUnpack } from './umoci.js'

export const appUser = { name: 'app', uid: 1500, gid: 1500 } as const
/** A supplementary group of the user, by /etc/group alone. */
export const appGroup = { name: 'reporters', gid: 1600 } as const

export const debianPythonImage: ImageRecipe = {
  name: 'debian-python',
  version: 1,
  ingredients: [],
  async make(image, workFolder) {
    const bundle = path.join(workFolder, 'bundle')
    const rootfs = await umociUnpack(image, bundle)
    await installDebian(rootfs, workFolder)
    await addLayer(image, bundle, 'Debian and Python')
    await installApp(rootfs)
    await addLayer(image, bundle, 'the application')
    await removeAndReplace(rootfs)
    await addLayer(image, bundle, 'whiteouts, and types replaced')
    await changeInPlace(rootfs)
    await addLayer(image, bundle, 'modes, owners, links and attributes')
    const marked = path.join(workFolder, 'marked')
    await markRemovals(marked)
    await addLayerAsItIs(image, marked, 'a folder made opaque')
    await configureImage(image, {
      user: appUser.name,
      env: { PATH: '/usr/local/bin:/usr/bin:/bin', GREETING: 'hello = from the image', EMPTY: '' },
      workdir: '/app/work',
      entrypoint: ['python3', '/app/main.py'],
      cmd: ['first argument', '--second'],
      stopSignal: 'SIGINT',
      labels: { 'dev.bandsox.test': 'debian python', maintainer: 'nobody' },
      exposedPorts: ['8080/tcp', '5353/udp'],
    })
  },
}

/** A layer as other builders write it, with the markers of the OCI image specification, layer.md. */
async function markRemovals(layer: string): Promise<void> {
  await mkdir(path.join(layer, 'app/cache'), { recursive: true })
  await writeFile(path.join(layer, 'app/.wh.unwanted'), '')
  await writeFile(path.join(layer, 'app/cache/.wh..wh..opq'), '')
  await writeFile(path.join(layer, 'app/cache/new'), 'all that is left\n')
}

/** What no test looks at, and would double the time that it takes. */
const EXCLUDED = ['/usr/share/doc/*', '/usr/share/info/*', '/usr/share/locale/*', '/usr/share/man/*']

async function installDebian(rootfs: string, workFolder: string): Promise<void> {
  const { suite, lines, options } = await hostAptSource()
  const sources = path.join(workFolder, 'sources.list')
  await writeFile(sources, `${lines.join('\n')}\n`)
  await runTool([
    // When this process is killed, half a minute of installing must not go on in a folder that the next one removes.
    ...['setpriv', '--pdeathsig', 'TERM'],
    ...['mmdebstrap', '--quiet', '--mode=root', '--variant=minbase', '--include=python3-minimal'],
    ...['--keyring=/usr/share/keyrings', ...options.map((option) => `--aptopt=${option}`)],
    ...EXCLUDED.map((pattern) => `--dpkgopt=path-exclude=${pattern}`),
    ...[suite, rootfs, sources],
  ])
}

/** Prints as print-process does in the image `scratch`; python3-minimal has no json. */
const mainProgram = `import os, sys
print(f"uid={os.getuid()}")
print(f"gid={os.getgid()}")
print(f"groups=[{' '.join(str(each) for each in sorted(os.getgroups()))}]")
print(f"cwd={os.getcwd()}")
print(f"greeting={os.environ.get('GREETING', '')}")
print("args=[" + " ".join('"' + each + '"' for each in sys.argv[1:]) + "]")
`

async function installApp(rootfs: string): Promise<void> {
  const at = (name: string) => path.join(rootfs, name)
  await runTool(['chroot', rootfs, 'groupadd', '--gid', String(appGroup.gid), appGroup.name])
  await runTool([
    ...['chroot', rootfs, 'useradd', '--uid', String(appUser.uid), '--user-group', '--groups', appGroup.name],
    ...['--create-home', '--shell', '/bin/sh', appUser.name],
  ])
  for (const folder of ['bin', 'cache', 'devices', 'names', 'unwanted', 'work']) {
    await mkdir(at(`app/${folder}`), { recursive: true })
  }
  await chown(at('app/work'), appUser.uid, appUser.gid)
  await writeFile(at('app/main.py'), mainProgram)
  await addPrograms(at)
  await addSpecialFiles(at)
  await addOddNames(at('app/names'))
  for (const name of ['cache/old', 'cache/older', 'unwanted/file', 'notes', 'private', 'shared-by-all']) {
    await writeFile(at(`app/${name}`), `${name}\n`)
  }
  await addWhatWillBeReplaced(at)
}

type At = (name: string) => string

async function addPrograms(at: At): Promise<void> {
  const program = at('usr/bin/true')
  await copyFile(program, at('app/bin/tool'))
  await link(at('app/bin/tool'), at('app/bin/tool-again'))
  await link(at('app/bin/tool'), at('usr/local/bin/tool'))
  for (const [name, mode, gid] of [
    ['setuid', 0o4755, 0],
    ['setuid-no-more', 0o4755, 0],
    ['setgid', 0o2755, appGroup.gid],
    ['capable', 0o755, 0],
    ['capable-no-more', 0o755, 0],
  ] as const) {
    await copyFile(program, at(`app/bin/${name}`))
    await chown(at(`app/bin/${name}`), 0, gid) // before the mode: it clears setuid
    await chmod(at(`app/bin/${name}`), mode)
  }
  for (const name of ['capable', 'capable-no-more']) {
    await runTool(['setcap', 'cap_net_bind_service,cap_net_raw+ep', at(`app/bin/${name}`)])
  }
}

async function addSpecialFiles(at: At): Promise<void> {
  await mkdir(at('app/spool'))
  await chmod(at('app/spool'), 0o1777)
  await mkdir(at('app/inherited'))
  await chown(at('app/inherited'), 0, appGroup.gid)
  await chmod(at('app/inherited'), 0o2775)
  await runTool(['mknod', at('app/devices/null'), 'c', '1', '3'])
  await runTool(['mknod', at('app/devices/loop'), 'b', '7', '300'])
  await runTool(['mkfifo', at('app/devices/fifo')])
  await writeFile(at('app/empty'), '')
  await writeFile(at('app/sparse'), 'at the beginning')
  await truncate(at('app/sparse'), 3_000_000)
  await appendFile(at('app/sparse'), 'at the end')
  await writeFile(at('app/owned-from-afar'), 'beyond the octal digits of a tar header\n')
  await chown(at('app/owned-from-afar'), 3_000_000, 4_000_000_000)
  await writeFile(at('app/attributed'), '')
  for (const [name, value] of [
    ['user.comment', 'a text'],
    ['user.binary', '0x00ff0a'],
    ['trusted.kept', 'for root only'],
  ] as const) {
    await runTool(['setfattr', '--name', name, '--value', value, at('app/attributed')])
  }
  await runTool(['setfattr', '--name', 'user.comment', '--value', 'of a folder', at('app/work')])
}

async function addOddNames(folder: string): Promise<void> {
  const names = [
    ' space around ',
    'new\nline',
    'tab\tand\x01control',
    'back\\slash',
    'quotes\'"`',
    '$(echo)*?[a]',
    '-rf',
    '#comment',
    'x=y,z:w',
    '日本 é',
    'e\u0301 decomposed',
    'n'.repeat(255),
  ].map((name) => Buffer.from(name))
  names.push(Buffer.from([0x6e, 0x6f, 0x74, 0x20, 0xff, 0xfe])) // "not ", then bytes that are no UTF-8
  for (const name of names) {
    const file = await open(Buffer.concat([Buffer.from(`${folder}/`), name]), 'wx', 0o644)
    await file.writeFile(name)
    await file.close()
  }
  const deep = path.join(folder, ...Array.from({ length: 12 }, (_, depth) => `${depth}`.repeat(24)))
  await mkdir(deep, { recursive: true })
  await writeFile(path.join(deep, 'a path longer than a tar header holds'), 'deep\n')
  await symlink(`${'../'.repeat(12)}new\nline`, path.join(deep, 'relative'))
  await symlink(`/nowhere/${'t'.repeat(200)}`, path.join(folder, 'dangling'))
  await symlink('/app/main.py', path.join(folder, 'absolute'))
  await symlink('itself', path.join(folder, 'itself'))
  await lchown(path.join(folder, 'itself'), appUser.uid, appGroup.gid)
}

/** Each is named after what becomes of it. */
async function addWhatWillBeReplaced(at: At): Promise<void> {
  for (const name of ['removed', 'becomes-symlink', 'becomes-file', 'remade', 'kept']) {
    await mkdir(at(`app/replaced/${name}/inner`), { recursive: true })
    await writeFile(at(`app/replaced/${name}/file`), `file of ${name}\n`)
    await writeFile(at(`app/replaced/${name}/inner/file`), `inner file of ${name}\n`)
  }
  await writeFile(at('app/replaced/removed-file'), 'removed\n')
  await writeFile(at('app/replaced/file-becomes-folder'), 'a file\n')
  await writeFile(at('app/replaced/file-becomes-symlink'), 'a file\n')
  await symlink('kept', at('app/replaced/symlink-becomes-folder'))
  await symlink('kept/file', at('app/replaced/symlink-becomes-file'))
  await symlink('kept', at('app/replaced/symlink-becomes-another'))
}

async function removeAndReplace(rootfs: string): Promise<void> {
  const at = (name: string) => path.join(rootfs, name)
  const replaced = (name: string) => at(`app/replaced/${name}`)
  const remove = (name: string) => rm(name, { recursive: true })
  await remove(at('usr/share/bash-completion'))
  await remove(at('usr/share/perl5/Debconf'))
  await remove(at('usr/bin/perl')) // one of two links
  await remove(at('app/bin/tool-again')) // one of three links
  await remove(replaced('removed'))
  await remove(replaced('removed-file'))
  await remove(replaced('kept/inner/file'))
  await remove(replaced('becomes-symlink'))
  // umoci's layer has this link and then whiteouts in it, for what was in the folder. It leads to a folder that has nothing
  // of these names, since umoci would remove them there.
  await symlink('../names', replaced('becomes-symlink'))
  await remove(replaced('becomes-file'))
  await writeFile(replaced('becomes-file'), 'a file now\n')
  await remove(replaced('remade'))
  await mkdir(replaced('remade'))
  await writeFile(replaced('remade/file'), 'another file of the same name\n')
  await writeFile(replaced('remade/new'), 'new\n')
  await remove(replaced('file-becomes-folder'))
  await mkdir(replaced('file-becomes-folder'))
  await writeFile(replaced('file-becomes-folder/file'), 'in a folder now\n')
  await remove(replaced('file-becomes-symlink'))
  await symlink('kept/file', replaced('file-becomes-symlink'))
  await remove(replaced('symlink-becomes-folder'))
  await mkdir(replaced('symlink-becomes-folder'))
  await writeFile(replaced('symlink-becomes-folder/own'), 'not in the folder that the link led to\n')
  await remove(replaced('symlink-becomes-file'))
  await writeFile(replaced('symlink-becomes-file'), 'not the file that the link led to\n')
  await remove(replaced('symlink-becomes-another'))
  await symlink('../main.py', replaced('symlink-becomes-another'))
}

async function changeInPlace(rootfs: string): Promise<void> {
  const at = (name: string) => path.join(rootfs, name)
  await chmod(at('app/private'), 0o600)
  await chown(at('app/private'), appUser.uid, appUser.gid)
  await chown(at('app/notes'), appUser.uid, appGroup.gid)
  await chmod(at('app/work'), 0o750)
  await chmod(at('app/spool'), 0o3770)
  await lchown(at('app/names/dangling'), appUser.uid, appUser.gid)
  await chmod(at('usr/bin/tail'), 0o711)
  await chown(at('usr/bin/head'), appUser.uid, appUser.gid)
  await chmod(at('app/bin/setuid-no-more'), 0o755)
  await runTool(['setcap', '-r', at('app/bin/capable-no-more')])
  await runTool(['setfattr', '--remove', 'user.comment', at('app/attributed')])
  await runTool(['setfattr', '--name', 'user.binary', '--value', '0xfe', at('app/attributed')])
  await utimes(at('app/bin/tool'), 1_000_000_000, 1_000_000_000) // touches both of its names
  await link(at('app/shared-by-all'), at('app/shared-at-last')) // the first name lies in a layer below
  await link(at('usr/bin/env'), at('app/bin/env'))
  await appendFile(at('usr/bin/perlbug'), '# changed by a layer, under both of its names\n')
}
