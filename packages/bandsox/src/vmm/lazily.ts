/** Finds something out once; what failed is tried again by the next who asks, as what was missing may be installed by then. */
export function lazily<T>(find: () => Promise<T>): () => Promise<T> {
  let found: Promise<T> | undefined
  return () => {
    found ??= find().catch((error: unknown) => {
      found = undefined
      throw error
    })
    return found
  }
}
