/** Keeps credentials for registries: what the command line may know of `image/`. */
export {
  eraseCredentials as eraseRegistryCredentials,
  storeCredentials as keepRegistryCredentials,
} from '../image/source/registry/auth-file.js'
