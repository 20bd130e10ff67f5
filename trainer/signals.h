// Asking a run to stop: SIGTERM, SIGINT and SIGUSR1 set a flag that the loop reads between steps;
// it then saves and ends with 143 (core::InterruptedError). Ranks receive signals at different
// moments, so they agree first:
//
//   InstallStopSignals();                                                     // in main
//   BITSHARD_ASSIGN_OR_RETURN(const int64_t stop, comm->MaxInt64(StopSignal()));  // between steps
//   if (stop != 0) { save; return core::InterruptedError(...); }
//
// mpirun gives a rank one second between SIGTERM and SIGKILL; SIGUSR1 sent to mpirun is passed on
// at once and kills nothing, so that is the one to use before a planned stop.
#ifndef BITSHARD_TRAINER_SIGNALS_H_
#define BITSHARD_TRAINER_SIGNALS_H_

namespace bitshard::trainer {

/// Installs the handlers; SIGPIPE and SIGXFSZ are ignored, so that a closed pipe or a full quota is
/// an error of write and not the end of the process. A second SIGTERM or SIGINT, half a second or
/// more after the first, ends the process at once with 143 or 130; a second SIGUSR1 is not a new
/// request.
void InstallStopSignals();

/// The first signal that asked to stop, or 0.
int StopSignal();

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_SIGNALS_H_
