/** Our own programs in Go, for tests that run them. */
import { fileURLToPath } from 'node:url'

export const nativeProgram = (name: string): string => fileURLToPath(new URL(`../../native/${name}`, import.meta.url))
