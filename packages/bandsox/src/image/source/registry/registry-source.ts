/** A source that can also tell what its reference means without delivering it. */
import type { ImageSource } from '../source.js'

export interface RegistrySource extends ImageSource {
  /**
   * Asks which document the reference means now, without fetching it where the registry can tell: Docker Hub does not count
   * that against its limit of pulls. What it tells is not verified.
   *
   * @throws the codes of `root`.
   */
  digest(signal?: AbortSignal): Promise<string>
}
