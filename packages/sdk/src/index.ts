/** What every runtime shares: interfaces, states and errors. No I/O. */
export * from './model/errors.js'
export * from './model/image.js'
export * from './model/printable.js'
export * from './model/sandbox.js'
export * from './model/shape.js'
export * from './model/snapshot.js'
export * from './model/state.js'
