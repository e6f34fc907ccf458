/* bcryptprimitives.dll: Rust's programs ask Windows for random numbers there, and wine 8 has none. */

#include <windows.h>

#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size) {
    return RtlGenRandom(data, (ULONG)size);
}
