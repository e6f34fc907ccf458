/*
 * Threads, locks and clocks as far as the pool needs them: POSIX's, or the Win32 calls of the same
 * meaning. Those are in every Windows, so the library needs no other one there, and compilers differ
 * in which POSIX threads for Windows they bring, if any.
 */
#ifndef EDB_THREADS_H
#define EDB_THREADS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

typedef HANDLE edb_thread;
typedef DWORD edb_thread_result;
typedef SRWLOCK edb_lock;
typedef CONDITION_VARIABLE edb_signal;

/* 0, or another number if the system refused. */
static inline int edb_start_thread(edb_thread *thread, size_t stack_bytes,
                                   edb_thread_result (*run)(void *), void *argument) {
    *thread = CreateThread(NULL, stack_bytes, run, argument, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    return *thread == NULL;
}

static inline void edb_join_thread(edb_thread thread) {
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}

static inline void edb_prefer_fast_cores(void) {} /* the system goes by how busy a thread is */

/* The library stays where its threads run when whoever loaded it is gone: Python's end, say. */
static inline void edb_stay_loaded(void) {
    static const char here;
    HMODULE self;
    GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, &here,
                       &self);
}

static inline void edb_make_lock(edb_lock *lock) { InitializeSRWLock(lock); }
static inline void edb_take_lock(edb_lock *lock) { AcquireSRWLockExclusive(lock); }
static inline void edb_release_lock(edb_lock *lock) { ReleaseSRWLockExclusive(lock); }
static inline void edb_end_lock(edb_lock *lock) { (void)lock; }

static inline void edb_make_signal(edb_signal *s) { InitializeConditionVariable(s); }
static inline void edb_await_signal(edb_signal *s, edb_lock *lock) {
    SleepConditionVariableSRW(s, lock, INFINITE, 0);
}
static inline void edb_signal_all(edb_signal *s) { WakeAllConditionVariable(s); }
static inline void edb_end_signal(edb_signal *s) { (void)s; }

static inline void edb_yield(void) { SwitchToThread(); }

/* Windows' shortest sleep is up to 16 ms, so only the rest of the time slice is given away. */
static inline void edb_nap(int32_t ns) {
    (void)ns;
    Sleep(0);
}

static inline int64_t edb_now_ns(void) {
    LARGE_INTEGER ticks, per_second; /* 10 MHz or less, so the products stay inside 63 bits */
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    int64_t seconds = ticks.QuadPart / per_second.QuadPart;
    int64_t rest = ticks.QuadPart % per_second.QuadPart;
    return seconds * 1000000000 + rest * 1000000000 / per_second.QuadPart;
}

#else

#include <pthread.h>
#include <sched.h>
#include <time.h>
#if defined(__APPLE__)
#include <pthread/qos.h>
#endif

typedef pthread_t edb_thread;
typedef void *edb_thread_result;
typedef pthread_mutex_t edb_lock;
typedef pthread_cond_t edb_signal;

static inline int edb_start_thread(edb_thread *thread, size_t stack_bytes,
                                   edb_thread_result (*run)(void *), void *argument) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return 1;
    pthread_attr_setstacksize(&attributes, stack_bytes); /* the default is fine too if refused */
    int refused = pthread_create(thread, &attributes, run, argument);
    pthread_attr_destroy(&attributes);
    return refused;
}

static inline void edb_join_thread(edb_thread thread) { pthread_join(thread, NULL); }

/* Of the calling thread: macOS puts threads that nobody waits for on its slow cores. */
static inline void edb_prefer_fast_cores(void) {
#if defined(__APPLE__)
    pthread_set_qos_class_self_np(QOS_CLASS_USER_INITIATED, 0);
#endif
}

static inline void edb_stay_loaded(void) {} /* asked for by who loads it: RTLD_NODELETE */

/* Neither can fail with default attributes on our systems. */
static inline void edb_make_lock(edb_lock *lock) { pthread_mutex_init(lock, NULL); }
static inline void edb_make_signal(edb_signal *s) { pthread_cond_init(s, NULL); }

static inline void edb_take_lock(edb_lock *lock) { pthread_mutex_lock(lock); }
static inline void edb_release_lock(edb_lock *lock) { pthread_mutex_unlock(lock); }
static inline void edb_end_lock(edb_lock *lock) { pthread_mutex_destroy(lock); }
static inline void edb_await_signal(edb_signal *s, edb_lock *lock) { pthread_cond_wait(s, lock); }
static inline void edb_signal_all(edb_signal *s) { pthread_cond_broadcast(s); }
static inline void edb_end_signal(edb_signal *s) { pthread_cond_destroy(s); }

static inline void edb_yield(void) { sched_yield(); }

static inline void edb_nap(int32_t ns) {
    const struct timespec time = {0, ns};
    nanosleep(&time, NULL);
}

static inline int64_t edb_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#endif

/* Tells the core that this thread spins. */
static inline void edb_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

#endif
