//! The table of the catalogue itself.

use super::{Entry, ExitCode};

macro_rules! catalogue {
    ($($variant:ident, $name:literal, $status:literal, $exit:ident, $title:literal, $cause:literal, $remedy:literal, $example:literal;)*) => {
        /// A code of the catalogue.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(
                #[doc = $title]
                $variant,
            )*
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its entry.
            #[must_use]
            pub fn entry(self) -> Entry {
                match self {
                    $(Self::$variant => Entry {
                        code: self,
                        name: $name,
                        status: $status,
                        exit: ExitCode::$exit,
                        title: $title,
                        cause: $cause,
                        remedy: $remedy,
                        example: $example,
                    },)*
                }
            }
        }
    };
}

catalogue! {
    // The command line and its connection.
    ContextMissing, "KEEL-1001", 0, Denied, "no context file",
        "The command line knows no coordinator: there is no context file at the place where it looks.",
        "Start a coordinator (`cargo xtask up` writes one below its state directory), or name its file with --context or KEELSON_CONTEXT.",
        "keelson --context ~/.local/state/keelson/context.json status";
    ContextInvalid, "KEEL-1002", 0, Denied, "the context file cannot be used",
        "It cannot be read, is not JSON or YAML with server, caCertificate and token, or other users may read it.",
        "Read the reason, repair the file (`chmod 600` when others may read it) or copy it again from the coordinator's state directory.",
        "keelson --context FILE status";
    Unreachable, "KEEL-1003", 0, Unreachable, "the coordinator does not answer",
        "No connection could be made, or it broke before an answer came. Nothing is known about what the coordinator did with the request.",
        "Check that the coordinator runs and that the address in the context file is right. Repeating a command is safe: it does not do the work twice.",
        "keelson status";
    TlsNotTrusted, "KEEL-1004", 0, Unreachable, "the coordinator's certificate is not trusted",
        "Its certificate was not signed by the CA in the context file, names another host, or is out of date by this machine's clock.",
        "Check this machine's clock, then take a fresh context file from the coordinator's state directory.",
        "keelson --context FILE version";
    ConfirmationMissing, "KEEL-1005", 0, Usage, "a confirmation is needed",
        "The command destroys something and nobody can be asked: standard input is not a terminal.",
        "Add --yes when you are sure.",
        "keelson cluster delete NAME --yes";
    ConfirmationWrong, "KEEL-1006", 0, Usage, "the typed name is another one",
        "The name that was typed is not the name of what would be destroyed. Nothing was done.",
        "Run the command again and type the name exactly, or look up what you meant.",
        "keelson cluster list";
    WaitTimedOut, "KEEL-1007", 0, Timeout, "the wait ended before the operation did",
        "The operation did not end within the given time. It goes on; only this command stopped waiting.",
        "Attach again with `keelson operation watch ID`, or look at what it waits for with `keelson cluster show NAME --explain`.",
        "keelson operation watch op-1";
    Detached, "KEEL-1008", 0, Detached, "detached",
        "Ctrl-C was pressed. The operation goes on; nothing was cancelled.",
        "Attach again with `keelson operation watch ID`; to stop the work itself use `keelson operation cancel ID`.",
        "keelson operation watch op-1";
    KubeconfigUnusable, "KEEL-1009", 0, Failed, "the kubeconfig file cannot be changed",
        "It cannot be read or written, or is no kubeconfig. It was left as it is.",
        "Repair the file, or write to another one with --file, or print with --print.",
        "keelson cluster kubeconfig NAME --file ./kubeconfig";
    UnexpectedAnswer, "KEEL-1010", 0, Failed, "the answer cannot be understood",
        "Something answered that is no coordinator, or one of a version that this command line does not know.",
        "Compare both versions, and upgrade the older side.",
        "keelson version";
    OperationFailed, "KEEL-1011", 0, Failed, "the operation failed",
        "The coordinator gave the operation up. Its reason stands beside this message and in the operation.",
        "Remove the cause that is named, then run the command again.",
        "keelson operation show op-1";
    OperationBlocked, "KEEL-1012", 0, Blocked, "the operation waits for a person",
        "It can only go on when a person removes the cause that is named. It has not failed and goes on by itself then.",
        "Do what the reason says, then attach again with `keelson operation watch ID`.",
        "keelson cluster show NAME --explain";
    OperationCancelled, "KEEL-1013", 0, Failed, "the operation was cancelled",
        "Somebody cancelled it, or asked for something else since, such as another size of the same pool. What becomes of what it had made so far stands in the operation.",
        "Read why it ended. Where another size was asked for, that one counts: speak with who asked for it before you ask again. Otherwise run the command again, or delete what is left.",
        "keelson operation show op-1";
    CodeUnknown, "KEEL-1014", 0, NotFound, "no such code",
        "The text is not in the catalogue of this version.",
        "Check the spelling; a newer coordinator may use codes that this command line does not know yet.",
        "keelson explain KEEL-2201";
    CommandLine, "KEEL-1015", 0, Usage, "the command line is not valid",
        "A flag, a value or a verb is not known, or something is missing.",
        "Read the hint, or see --help of the command.",
        "keelson help";
    LocalIo, "KEEL-1016", 0, Failed, "this machine refused",
        "A file, the terminal or another resource of the machine on which the command runs could not be used.",
        "Remove the cause that is named, then run the command again.",
        "keelson help";
    CountDiffers, "KEEL-1017", 0, Refused, "the number of targets was not confirmed",
        "A selector chose several objects that would be destroyed, and --count is missing or names another number. Nothing was done.",
        "Look at the names, and add --count with their number when you mean all of them.",
        "keelson cluster list -l env=test";
    FieldNotThere, "KEEL-1018", 0, NotFound, "no such field",
        "The documents of this version have no field at that path.",
        "Begin with the kind alone (cluster, machine, operation, plan, release, event), and follow the fields that are listed.",
        "keelson explain cluster.spec";
    ClusterNotThere, "KEEL-1019", 0, Failed, "the cluster does not get where it should",
        "The cluster that is waited for has failed, or goes another way: it is being removed.",
        "Look at what it says, and remove the cause.",
        "keelson cluster show NAME --explain";

    ClusterCheckFailed, "KEEL-1020", 0, Failed, "something that users of the cluster need does not work",
        "The self-test found it by trying. Each check that failed says what was seen.",
        "Do what stands beside the checks that failed, the first one first: the others often follow from it.",
        "keelson cluster check NAME";
    DocumentInvalid, "KEEL-1021", 0, Usage, "the file holds no valid document",
        "It is neither YAML nor JSON, or a document in it has a field that is missing, not known, or of the wrong kind.",
        "Correct the place that is named; a document that is right: keelson plan show small -o yaml",
        "keelson plan show small -o yaml";
    RepairCalledOff, "KEEL-1022", 0, Conflict, "the repair was called off",
        "Between its beginning and the moment when it would have taken the machine's power away a guard began to hold, or the machine turned out to live. What was asked for was not done.",
        "Read the cause, and ask again when it is gone and the machine still needs it.",
        "keelson why MACHINE";
    ShellCut, "KEEL-1023", 0, Unreachable, "the connection to the machine ended under a command",
        "The machine, its agent or the coordinator went away while a command ran there. A command that switches a machine off ends like this.",
        "Look at the machine with `keelson why ID` before you repeat the command: it may have done its work.",
        "keelson why ID";

    // Requests.
    Unauthenticated, "KEEL-2001", 401, Denied, "who asks is not known",
        "The request has no token, or one that the coordinator does not know (any more).",
        "Take a fresh context file from the coordinator's state directory.",
        "keelson --context FILE status";
    Forbidden, "KEEL-2002", 403, Denied, "not allowed",
        "The caller is known and may not do this.",
        "Ask somebody who may, or ask for the right.",
        "keelson status";
    RequestMalformed, "KEEL-2003", 400, Usage, "the request cannot be read",
        "The body is not JSON, lacks a field, or a parameter has a value of the wrong kind.",
        "Compare the request with /v1/openapi.json.",
        "keelson cluster create NAME --plan small --dry-run";
    FieldUnknown, "KEEL-2004", 400, Usage, "the request has a field that is not known",
        "Unknown fields are refused, because a misspelt field would otherwise be ignored in silence.",
        "Check the spelling against /v1/openapi.json, or upgrade the coordinator.",
        "keelson version";
    BodyTooLarge, "KEEL-2005", 413, Usage, "the request is too large",
        "The body is larger than any request needs to be.",
        "Send a smaller body.",
        "keelson help";
    MediaTypeUnsupported, "KEEL-2006", 415, Usage, "the body must be JSON",
        "The request has a body, and its Content-Type is not application/json.",
        "Send `Content-Type: application/json`.",
        "keelson help";
    RequestTimedOut, "KEEL-2007", 503, Failed, "the coordinator took too long",
        "The request was not answered within its time. What it asked for may still happen.",
        "Try again: with the same Idempotency-Key nothing is done twice.",
        "keelson status";
    RouteNotFound, "KEEL-2008", 404, NotFound, "no such address",
        "The API has nothing at this path.",
        "Compare the path with /v1/openapi.json; an older coordinator may lack it.",
        "keelson version";
    MethodNotAllowed, "KEEL-2009", 405, Usage, "the address does not take this method",
        "The path exists, but not for this method.",
        "Compare the request with /v1/openapi.json.",
        "keelson version";
    PreconditionMissing, "KEEL-2010", 428, Conflict, "If-Match is missing",
        "A change must say which state of the object it was made for, so that nobody overwrites what they did not see.",
        "Read the object, and send its ETag in If-Match (`*` for any state).",
        "keelson cluster show NAME -o json";
    PreconditionFailed, "KEEL-2011", 412, Conflict, "it was changed meanwhile",
        "The object is no longer in the state that If-Match names.",
        "Read it again, look at what changed, and repeat the change if it is still right.",
        "keelson cluster show NAME";
    IdempotencyKeyReused, "KEEL-2012", 409, Conflict, "the Idempotency-Key belongs to another request",
        "The same key was used with another body within the last 24 hours.",
        "Use a fresh key for each new request.",
        "keelson operation list";
    ParameterInvalid, "KEEL-2013", 400, Usage, "a parameter is not valid",
        "A query parameter or a header is out of its range, or of the wrong form.",
        "Correct the parameter that is named.",
        "keelson help";
    UpgradeMissing, "KEEL-2014", 426, Usage, "a shell needs an upgraded connection",
        "The request lacks `Connection: Upgrade` and `Upgrade: keelson-shell`, or came over HTTP/2, which cannot be upgraded.",
        "Use HTTP/1.1 with both headers.",
        "keelson machine shell ID";

    // Specs.
    NameInvalid, "KEEL-2101", 422, Usage, "the name is not valid",
        "Names are RFC 1123 labels: lower-case letters, digits and `-`, beginning and ending with a letter or digit; a cluster's has at most 40 characters.",
        "Choose another name.",
        "keelson cluster create demo-1 --plan tiny";
    SpecInvalid, "KEEL-2102", 422, Usage, "the cluster cannot be made like this",
        "A value of the spec is out of its range, or two of them exclude each other.",
        "Change the value that is named.",
        "keelson plan show small";
    PlanUnknown, "KEEL-2103", 422, Usage, "no such plan",
        "The installation offers no plan of that name.",
        "Choose one of those that `keelson plan list` shows.",
        "keelson plan list";
    ReleaseUnknown, "KEEL-2104", 422, Usage, "no such release",
        "The installation knows no release of that name.",
        "Choose one of those that `keelson release list` shows.",
        "keelson release list";
    ReleaseWithoutImage, "KEEL-2105", 409, Failed, "the release has no node image here",
        "The release is known, but this installation has no node image that carries it.",
        "Build the image, or choose a release that has one.",
        "keelson release list -o wide";
    PoolUnknown, "KEEL-2106", 422, Usage, "no such pool",
        "The cluster's plan has no pool of that name.",
        "Choose one of the pools that the plan has.",
        "keelson plan show small";
    PlanInvalid, "KEEL-2107", 422, Usage, "the plan is not valid",
        "A value of the plan is out of its range, or breaks a rule that every plan obeys.",
        "Change the field that is named.",
        "keelson plan show small -o yaml";

    // Clusters.
    ClusterNotFound, "KEEL-2201", 404, NotFound, "no such cluster",
        "The installation has no cluster of that name.",
        "Look at `keelson cluster list`; check that --context names the coordinator you mean.",
        "keelson cluster list";
    ClusterExists, "KEEL-2202", 409, Conflict, "the cluster exists already",
        "A cluster of that name stands, or is being made or removed.",
        "Choose another name, or look at the one that exists.",
        "keelson cluster show NAME";
    DeletionProtected, "KEEL-2203", 409, Refused, "the cluster is protected from deletion",
        "Its owner switched deletion protection on.",
        "Switch it off first, if the cluster shall really go.",
        "keelson cluster update NAME --deletion-protection off";
    ClusterBusy, "KEEL-2204", 409, Conflict, "an operation works on the cluster",
        "Another operation has not ended, and this one cannot run beside it.",
        "Wait for the operation that is named, or cancel it.",
        "keelson operation list";
    ClusterNotReady, "KEEL-2205", 409, Failed, "the cluster is not that far yet",
        "What was asked for needs an API server that answers.",
        "Wait until the cluster is ready, then try again.",
        "keelson cluster show NAME --explain";

    // Machines.
    MachineNotFound, "KEEL-2301", 404, NotFound, "no such machine",
        "No blueprint names a machine of that id.",
        "Look at `keelson machine list`.",
        "keelson machine list";
    AgentAway, "KEEL-2302", 503, Failed, "the machine's agent is not connected",
        "The machine boots, has no power, or its link is broken. Its workloads may well run.",
        "Try again in a moment; `keelson machine show ID` says since when it is away.",
        "keelson machine show ID";
    AgentRefused, "KEEL-2303", 502, Failed, "the machine's agent refused",
        "The agent could not do what was asked; its reason stands beside this message.",
        "Do what the reason says.",
        "keelson machine show ID";
    MachineBusy, "KEEL-2304", 409, Conflict, "something is being done to the machine already",
        "It is being repaired, made anew, or is leaving its cluster. Two things at once would get in each other's way.",
        "Wait until that is done; `keelson why` shows how far it is.",
        "keelson why MACHINE";
    RepairHeld, "KEEL-2305", 409, Refused, "a guard holds the repair back",
        "The repair could make things worse: too much is broken at once, another machine of the cluster is being worked on, the etcd quorum or the last API server would go, the record of the machine is old, its disk is the only copy, or the coordinator has just started.",
        "Wait for the end of the hold. When you know better, --override goes against meltdown, busy and apiServer, and with --confirm-loss-of CLUSTER also against quorum, oldRecord and impossible; nothing goes against starting, which ends by itself.",
        "keelson why MACHINE";

    RepairUseless, "KEEL-2306", 409, Refused, "the repair would change nothing",
        "What was asked for has no effect on the machine as it is: a machine that has power cannot be switched on, and one that the infrastructure does not know has nothing to be switched on.",
        "Look at which repairs are possible now, and choose one of them.",
        "keelson why MACHINE";

    // Operations.
    OperationNotFound, "KEEL-2401", 404, NotFound, "no such operation",
        "There is no operation of that id; they are kept for 90 days.",
        "Look at `keelson operation list`.",
        "keelson operation list";
    OperationEnded, "KEEL-2402", 409, Conflict, "the operation has ended already",
        "There is nothing left to cancel.",
        "Look at how it ended.",
        "keelson operation show op-1";
    OperationNotCancellable, "KEEL-2403", 409, Refused, "the operation cannot be cancelled",
        "Stopping here would leave something half made or half removed, or would remove a cluster that somebody may use.",
        "Let it end, or do instead what the cause names.",
        "keelson operation watch op-1";

    // Plans and releases.
    PlanNotFound, "KEEL-2501", 404, NotFound, "no such plan",
        "The installation offers no plan of that name.",
        "Look at `keelson plan list`.",
        "keelson plan list";
    PlanBuiltIn, "KEEL-2503", 409, Refused, "the plan is built in",
        "Plans that come with the coordinator are the same in every installation and stay as they are.",
        "Make a plan of your own with another name.",
        "keelson plan show small -o yaml";
    PlanInUse, "KEEL-2504", 409, Refused, "clusters use the plan",
        "A plan that clusters follow cannot be removed.",
        "Remove the clusters that are named first, or leave the plan.",
        "keelson cluster list";
    PlanChangeRefused, "KEEL-2505", 409, Refused, "the change of the plan would harm clusters",
        "Clusters follow their plan. One that is named would lose data or its API by the change, or could not follow it.",
        "Where data or the API would be lost, leave the pools that are named as they are and add others; where a cluster cannot follow, do what is said beside its name. Or apply the plan under another name.",
        "keelson plan apply -f plan.yaml --dry-run";
    PlansTooMany, "KEEL-2506", 409, Refused, "there are too many plans",
        "The installation keeps a limited number of plans, because all of them are read with every list.",
        "Remove plans that no cluster uses.",
        "keelson plan list";
    ReleaseNotFound, "KEEL-2502", 404, NotFound, "no such release",
        "The installation knows no release of that name.",
        "Look at `keelson release list`.",
        "keelson release list";

    // The coordinator itself.
    Internal, "KEEL-3001", 500, Failed, "the coordinator made an error",
        "Something happened inside the coordinator that should not. The details are in its log.",
        "Try again; if it stays, keep the coordinator's log and report it.",
        "keelson status";
    ShuttingDown, "KEEL-3002", 503, Failed, "the coordinator is stopping",
        "It takes no new work; work in progress goes on when it runs again.",
        "Try again when it runs.",
        "keelson status";
    StoreUnavailable, "KEEL-3003", 503, Failed, "the coordinator cannot use its store",
        "Its disk is full or broken. Nothing new is accepted, because it could be forgotten.",
        "Free space on the disk of the coordinator's state directory.",
        "keelson status";
    Busy, "KEEL-3004", 503, Failed, "the coordinator is busy",
        "Too many requests are under way.",
        "Try again after the time that is named.",
        "keelson status";
    NotSupported, "KEEL-3005", 501, Failed, "this coordinator cannot do that",
        "The request is valid, but this version or this provider has no such ability.",
        "Compare versions, or use another provider.",
        "keelson version";

    // What a plan can wait for.
    WaitProviderCreate, "KEEL-4001", 0, Done, "the provider makes a machine",
        "The infrastructure was asked for a machine and has not reported it as running.",
        "Nothing: it ends by itself. Look at the provider when it takes much longer than usual.",
        "keelson machine list --cluster NAME";
    WaitProviderRetry, "KEEL-4002", 0, Done, "the provider refused for now",
        "The infrastructure refused the call in a way that may pass (quota, stock, throttling); it is asked again.",
        "Nothing, or remove the cause that the provider names.",
        "keelson events --cluster NAME";
    WaitProviderRefused, "KEEL-4003", 0, Blocked, "the provider refused for good",
        "The infrastructure refused the call in a way that asking again does not change (rights, a bad field).",
        "Remove the cause that the provider names; the coordinator goes on then, or create the cluster again.",
        "keelson cluster show NAME --explain";
    WaitBoot, "KEEL-4004", 0, Done, "a machine boots",
        "The machine has power and its agent has not asked for a certificate yet.",
        "Nothing: it ends by itself. When it takes minutes, look at the machine where the infrastructure shows it; of the local provider, its console is console.log in the machine's folder below the state directory.",
        "keelson machine show ID";
    WaitConnect, "KEEL-4005", 0, Done, "an agent has not connected yet",
        "The agent has its certificate and has no session with the coordinator.",
        "Nothing, unless it lasts: then check that the machine reaches the coordinator's link port (UDP).",
        "keelson machine show ID";
    WaitConfig, "KEEL-4006", 0, Done, "a machine receives its config",
        "The agent is connected and has not reported the newest generation.",
        "Nothing: it ends by itself.",
        "keelson machine show ID";
    WaitUnit, "KEEL-4007", 0, Done, "a unit is not healthy yet",
        "A program on the machine waits for another one, starts, or fails its health probe. The agent restarts it within its budget.",
        "Nothing while it starts. When it fails, read its log.",
        "keelson machine logs ID --unit kubelet.service";
    WaitSilent, "KEEL-4008", 0, Done, "a machine is silent",
        "No heartbeat came for about three seconds: the machine, its link or its agent is down. Which one is not known, so nothing is destroyed.",
        "Look at the machine; `keelson events` shows what was seen.",
        "keelson events --cluster NAME";
    WaitOff, "KEEL-4009", 0, Done, "a machine has no power",
        "The provider says that the machine is off, though it should be on. It is being switched on.",
        "Nothing: it ends by itself, unless somebody switches it off again.",
        "keelson machine show ID";
    WaitProviderDelete, "KEEL-4010", 0, Done, "the provider removes a machine",
        "The infrastructure was asked to remove the machine and still lists it.",
        "Nothing: it is asked until the machine is gone.",
        "keelson machine list --cluster NAME";
    WaitEndpoint, "KEEL-4011", 0, Done, "the API server has no outside address yet",
        "The provider has not reported the address under which users reach the API server.",
        "Nothing, unless the provider names a cause (a port that is taken).",
        "keelson cluster show NAME --explain";
    WaitTurn, "KEEL-4012", 0, Done, "a machine waits for its turn",
        "Its new config restarts a part of the control plane. Only one machine of it restarts at a time, and the next one when that is ready.",
        "Nothing, unless the machine before it stays as it is: then look at that one.",
        "keelson machine show ID";
    WaitEtcdJoin, "KEEL-4013", 0, Done, "an etcd member joins",
        "The machine's etcd member was added as a learner, or is about to be. It votes when it has caught up with the others.",
        "Nothing: it ends by itself, within seconds for a small database.",
        "keelson machine logs ID --unit etcd.service";
    WaitEtcdSize, "KEEL-4014", 0, Done, "the number of etcd members changes later",
        "Etcd members come and go one at a time, and only while all others vote and work, so that one more failure never costs the quorum.",
        "Look at the machine that it names when that does not get well by itself.",
        "keelson cluster show NAME --explain";
    WaitLeave, "KEEL-4015", 0, Done, "a machine leaves the cluster",
        "Its pods are moved within their disruption budgets, its volumes detached, its node and its etcd member removed; then the machine is removed.",
        "Nothing, unless it names a disruption budget that never allows a pod to go: run more replicas or change the budget, or give the drain another end: `keelson cluster update NAME --drain-timeout 10m --drain-then force`.",
        "keelson cluster show NAME --explain";
    WaitRepair, "KEEL-4016", 0, Done, "a machine is being repaired, or its repair is held back",
        "Something is wrong with the machine. It is being mended, or a guard holds the repair back until it is safe; the text says which.",
        "Read why with `keelson why MACHINE`: what ends a hold stands beside it, and meltdown, quorum and retries have a cause that somebody should look for.",
        "keelson why MACHINE";
    WaitPlan, "KEEL-4017", 0, Blocked, "not all that was asked for can be planned",
        "Something ran out since it was asked for, for example the addresses of the network. What can be planned is done all the same.",
        "Make room: remove what is not needed, or ask for less.",
        "keelson why CLUSTER";
    WaitUnexpose, "KEEL-4018", 0, Done, "the address of a cluster that goes is given up",
        "All else of the cluster is gone. The infrastructure was asked to give up the address of its API server, and has not yet.",
        "Nothing, unless the provider names a cause, such as a permission that it lacks: it is asked until it is done.",
        "keelson why NAME";
}
