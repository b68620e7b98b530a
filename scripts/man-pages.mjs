#!/usr/bin/env node
/** Writes the manual that the package ships, from the commands as they are now. npm runs it before it packs (prepack). */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { command } from './lib/command.mjs'
import { root } from './lib/paths.mjs'
import { buildTypeScript } from './lib/typescript.mjs'

const bandsox = join(root, 'packages/bandsox')
const folder = join(bandsox, 'man')

await buildTypeScript({ root, env: process.env })
await rm(folder, { recursive: true, force: true }) // pages of commands that are no more
await command([process.execPath, join(bandsox, 'bin/bandsox.js'), 'man', '--output', folder])
