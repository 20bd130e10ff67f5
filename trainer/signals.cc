#include "trainer/signals.h"

#include <signal.h>
#include <unistd.h>

namespace bitshard::trainer {
namespace {

// A signal handler can reach nothing but globals; this one is the only mutable one of the trainer.
volatile sig_atomic_t g_stop_signal = 0;

void OnStopSignal(int signal) {
  if (g_stop_signal == 0) {
    g_stop_signal = signal;
  } else if (signal != SIGUSR1) {
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
