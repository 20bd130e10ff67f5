#include "trainer/signals.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace bitshard::trainer {
namespace {

// A signal handler can reach nothing but globals; these are the only mutable ones of the trainer.
volatile sig_atomic_t g_stop_signal = 0;
std::atomic<int64_t> g_stop_ms{0};
static_assert(std::atomic<int64_t>::is_always_lock_free);

// One request may come as several signals: `timeout` sends its own to the process and to the
// process group, and a batch system to each process that it knows.
constexpr int64_t kOneRequestMs = 500;

int64_t NowMs() {
  struct timespec now {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1000000;
}

void OnStopSignal(int signal) {
  if (g_stop_signal == 0) {
    g_stop_ms = NowMs();
    g_stop_signal = signal;
  } else if (signal != SIGUSR1 && NowMs() - g_stop_ms >= kOneRequestMs) {
    _exit(128 + signal);
  }
}

void Install(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, nullptr);
}

}  // namespace

void InstallStopSignals() {
  Install(SIGTERM, OnStopSignal);
  Install(SIGINT, OnStopSignal);
  Install(SIGUSR1, OnStopSignal);
  Install(SIGPIPE, SIG_IGN);
  Install(SIGXFSZ, SIG_IGN);
}

int StopSignal() { return g_stop_signal; }

}  // namespace bitshard::trainer
